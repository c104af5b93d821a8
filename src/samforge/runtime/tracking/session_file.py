"""A session as one npz file: numbers and text only, nothing that runs when it is read."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from samforge.core.errors import InputError
from samforge.core.masks import Masks
from samforge.runtime.tracking.bank import MemoryBank
from samforge.runtime.tracking.bank_file import arrays_from_banks, banks_from_arrays, write_arrays
from samforge.runtime.tracking.constants import MemoryRules, Rules
from samforge.runtime.tracking.drawn import Drawn, DrawnObject
from samforge.runtime.tracking.objects import SessionState, TrackedObject
from samforge.runtime.tracking.output import Held
from samforge.runtime.tracking.parts import TrackerParts
from samforge.runtime.tracking.settings import TrackingSettings
from samforge.runtime.tracking.state import Shown, Track, TrackingState

_VERSION = 2


def write_state(
    path: Path, settings: TrackingSettings, state: SessionState, parts: TrackerParts
) -> None:
    """Write a session, whole or not at all.

    Raises:
        OutputError: The file cannot be written.
    """
    head = {
        "version": _VERSION,
        "digest": parts.facts.digest,
        "settings": asdict(settings),
        "tracking": asdict(state.tracking),
        "objects": [_object_table(one) for one in state.objects.values()],
        "waiting": [_held_table(held) for held in state.waiting],
        "phrases": list(state.phrases),
        "size_hw": state.size_hw,
        "first": state.first,
        "due": state.due,
    }
    text = json.dumps(head, allow_nan=False).encode()
    banks = {number: one.bank for number, one in state.objects.items()}
    arrays = arrays_from_banks(banks, parts.saved)
    write_arrays(path, {"session": np.frombuffer(text, np.uint8), **arrays})


def state_from_file(path: Path, parts: TrackerParts) -> tuple[TrackingSettings, SessionState]:
    """Read what :func:`write_state` wrote.

    Raises:
        InputError: The file cannot be read, is no session of this version, holds NaN, or is one of
            another bundle.
    """
    try:
        # Read first: numpy leaves a damaged file open.
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        head = json.loads(arrays["session"].tobytes())
        version, digest = int(head["version"]), str(head["digest"])
    except Exception as error:  # zip, header, key and OS errors alike
        raise _unreadable(path, str(error)) from error
    if version != _VERSION:
        raise _unreadable(path, f"it is of version {version}, and this samforge reads {_VERSION}")
    if digest != parts.facts.digest:
        raise InputError(
            f"{path} is a session of another bundle ({digest[:12]}…, and this one is "
            f"{parts.facts.digest[:12]}…): what it remembers means nothing to this model. Load the "
            "bundle it was saved with, or begin a new session."
        )
    broken = [
        name
        for name, array in arrays.items()
        if array.dtype.kind == "f" and not np.isfinite(array).all()
    ]
    if broken:
        raise _unreadable(path, f"{broken[0]} holds infinity or NaN")
    try:
        return _settings(head["settings"]), _state(head, banks_from_arrays(arrays, parts.restored))
    except Exception as error:  # a key is missing, or a value is not what it was
        raise _unreadable(path, str(error)) from error


def _unreadable(path: Path, why: str) -> InputError:
    return InputError(
        f"{path} cannot be read as a video session: {why}. Give a file that VideoSession.save "
        "wrote."
    )


def _object_table(one: TrackedObject) -> dict[str, Any]:
    return {"id": one.id, "label": one.label, "by_text": one.by_text, "begun": one.begun}


def _held_table(held: Held) -> dict[str, Any]:
    drawn: Drawn = held.payload
    return {
        "frame": held.frame,
        "shown": [asdict(item) for item in held.shown],
        "size_hw": drawn.size_hw,
        "objects": {
            str(number): {
                "label": one.label,
                "phrase": one.phrase,
                "score": one.score,
                "rank": one.rank,
                "mask": one.masks.rle(0),
            }
            for number, one in drawn.objects.items()
        },
        "detected": drawn.detected,
        "dropped": drawn.dropped,
        "removed": list(drawn.removed),
        "born": list(drawn.born),
        "matched": list(drawn.matched),
        "best_scores": dict(drawn.best_scores),
    }


def _settings(table: Mapping[str, Any]) -> TrackingSettings:
    rules = table["rules"]
    if rules is not None:
        rules = Rules(**{**rules, "memory": MemoryRules(**rules["memory"])})
    return TrackingSettings(**{**table, "rules": rules})


def _state(head: Mapping[str, Any], banks: Mapping[int, MemoryBank]) -> SessionState:
    tracking = head["tracking"]
    tracks = tuple(
        Track(**{**track, "duplicate_frames": tuple(map(tuple, track["duplicate_frames"]))})
        for track in tracking["tracks"]
    )
    return SessionState(
        tracking=TrackingState(**{**tracking, "tracks": tracks}),
        objects={one["id"]: TrackedObject(**one, bank=banks[one["id"]]) for one in head["objects"]},
        waiting=tuple(_held(table) for table in head["waiting"]),
        phrases=tuple(head["phrases"]),
        size_hw=None if head["size_hw"] is None else (*head["size_hw"],),
        first=head["first"],
        due=head["due"],
    )


def _held(table: Mapping[str, Any]) -> Held:
    size_hw = (int(table["size_hw"][0]), int(table["size_hw"][1]))
    objects = {
        int(number): DrawnObject(
            label=one["label"],
            phrase=one["phrase"],
            score=one["score"],
            rank=one["rank"],
            masks=Masks.from_rle([one["mask"]], size_hw),
        )
        for number, one in table["objects"].items()
    }
    drawn = Drawn(
        size_hw=size_hw,
        objects=objects,
        detected=table["detected"],
        dropped=table["dropped"],
        removed=tuple(table["removed"]),
        born=tuple(table["born"]),
        matched=tuple(table["matched"]),
        best_scores=table["best_scores"],
    )
    shown = tuple(Shown(**item) for item in table["shown"])
    return Held(frame=table["frame"], shown=shown, payload=drawn)
