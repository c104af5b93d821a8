"""What a video session knows from frame to frame: frozen, so that a frame is taken whole or not."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from samforge.runtime.encoded import EncodedImage
from samforge.runtime.tracking.bank import MemoryBank
from samforge.runtime.tracking.calls import Pass
from samforge.runtime.tracking.constants import Rules
from samforge.runtime.tracking.memory import effective_score
from samforge.runtime.tracking.output import Held
from samforge.runtime.tracking.parts import TrackerParts
from samforge.runtime.tracking.seen import Seen
from samforge.runtime.tracking.state import Floats, Track, TrackingState

_FAR = 1 << 40
"""Frames between a prompted object and the beginning of its time for the rules, see below."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrackedObject:
    """One object that lives, beside what the rules count of it."""

    id: int
    """Given once and never again."""
    label: str
    """Its phrase, or the name that was given."""
    by_text: bool
    """Whether a phrase found it; else points, a box or a mask did."""
    begun: int
    """Frame of its birth or first prompt."""
    bank: MemoryBank = field(default_factory=MemoryBank)
    """What it remembers."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SessionState:
    """All that lasts from frame to frame; its size depends on living objects and the delay only."""

    tracking: TrackingState = field(default_factory=TrackingState)
    """What the rules know: a track for every object, those of prompts among them."""
    objects: Mapping[int, TrackedObject] = field(default_factory=dict)
    """By ascending id, as the tracks."""
    waiting: tuple[Held, ...] = ()
    """Frames that did not leave yet, oldest first; their payload is a ``Drawn``."""
    phrases: tuple[str, ...] = ()
    """What is looked for. Phrases are only added: a track names its own by position."""
    size_hw: tuple[int, int] | None = None
    """Of all frames; None before the first."""
    first: int | None = None
    """Number of the first frame."""
    due: bool = True
    """Whether phrases are looked for on the next frame, whatever its number."""
    ended: bool = False
    """Whether it was finished."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Turn:
    """One frame and what it is done with."""

    parts: TrackerParts
    """What runs the model."""
    encoded: EncodedImage
    """The frame's features, and its size."""
    frame: int
    """Its number."""
    rules: Rules
    """Of text video."""
    way: Pass
    """Which memories count."""

    @property
    def features(self) -> Mapping[str, Any]:
        """Of the frame."""
        return self.encoded.features


def track_of_prompt(number: int, frame: int, phrase: int, rules: Rules, *, reverse: bool) -> Track:
    """The track of an object that a user named.

    For the rules it began long ago: it is not on trial, so that no rule removes it, it counts as
    the earlier of two that are one, and it was born with no other.
    """
    long_ago = _FAR + number
    return Track(
        id=number,
        phrase=phrase,
        first_frame=frame + long_ago if reverse else frame - long_ago,
        last_seen=frame,
        score=1.0,
        keep_alive=rules.keep_alive_start,
    )


def phrase_of_prompt(number: int, label: str, phrases: Collection[str]) -> int:
    """The phrase of that name, or a number of its own: then no detection and no track meets it."""
    return list(phrases).index(label) if label in phrases else -1 - number


def group_scores(objects: Collection[TrackedObject], seen: Seen) -> Floats:
    """Scores for memory selection, (N,): Meta gives those that began together one score."""
    groups: dict[tuple[bool, int], list[int]] = {}
    for row, one in enumerate(objects):
        groups.setdefault((one.by_text, one.begun), []).append(row)
    scores = np.zeros(len(objects), np.float32)
    for rows in groups.values():
        scores[rows] = effective_score(seen.ious[rows], seen.scores[rows])
    return scores


def without_objects(state: SessionState, ids: Collection[int]) -> SessionState:
    """The state without some objects, whose ids are not given again."""
    tracks = tuple(track for track in state.tracking.tracks if track.id not in ids)
    return replace(
        state,
        tracking=replace(state.tracking, tracks=tracks),
        objects={number: one for number, one in state.objects.items() if number not in ids},
    )


def turned_state(state: SessionState, rules: Rules, *, reverse: bool) -> SessionState:
    """The state after a frame, to go the other way from it; no frame waits.

    Of what lies ahead now only frames that were prompted or confirmed are remembered: the others
    are gone through again. The frame itself becomes one of them, or an object that was only
    tracked there would have no pointer to be known by.
    """
    frame = state.tracking.frame or 0
    objects = {number: _turned(one, frame) for number, one in state.objects.items()}
    tracks = tuple(
        track
        if state.objects[track.id].by_text
        else track_of_prompt(track.id, frame, track.phrase, rules, reverse=reverse)
        for track in state.tracking.tracks
    )
    tracking = replace(state.tracking, tracks=tracks)
    return replace(state, tracking=tracking, objects=objects, first=frame, waiting=(), due=True)


def _turned(one: TrackedObject, frame: int) -> TrackedObject:
    kept = (
        replace(memory, conditioning=True)
        for memory in one.bank
        if memory.features is not None and (memory.conditioning or memory.frame == frame)
    )
    return replace(one, bank=MemoryBank(memories=tuple(kept)))
