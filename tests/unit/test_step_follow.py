"""The step that holds clicks and tracks: what passes, what is stopped, on how much evidence."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from samforge.core.capabilities import MEMORY_ATTENTION, POINT_DECODER, TRACK
from samforge.core.errors import FidelityError
from samforge.core.manifest import TRACKS_NAME
from samforge.core.recipe import Gates, Recipe
from samforge.core.session import Array, Session, Tensors
from samforge.models.eager import EagerSession
from samforge.models.loading import model_from_name
from samforge.steps import follow
from samforge.steps.context import BuildContext

Change = Callable[[dict[str, Array]], dict[str, Array]]


class Changed(EagerSession):
    """A part that is fed something else than it is given."""

    def __init__(self, part: Any, change: Change) -> None:
        super().__init__(part)
        self.change = change

    def run(self, tensors: Tensors) -> dict[str, Array]:
        return super().run(self.change(dict(tensors)))


@pytest.fixture(scope="module")
def parts(one_thread: None) -> Callable[[str], Any]:
    return lru_cache(model_from_name("tiny", tracker=True).part)


@pytest.fixture
def ask(
    parts: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Run the step on few pictures and one short clip, with parts of the bundle changed."""
    for name, value in {"PICTURES": 3, "CLIPS": 1, "FRAMES": 5, "PROOF_FRAMES": 2}.items():
        monkeypatch.setattr(follow, name, value)

    def run(changed: dict[str, Change] | None = None, gates: Gates | None = None) -> Any:
        def sessions(changes: dict[str, Change]) -> dict[str, Session]:
            return {
                name: Changed(parts(name), changes[name])
                if name in changes
                else EagerSession(parts(name))
                for name in TRACK.parts
            }

        monkeypatch.setattr(follow, "float_sessions", lambda _: sessions({}))
        monkeypatch.setattr(follow, "built_sessions", lambda _: sessions(changed or {}))
        recipe = Recipe(tracker=True, precision="int8", gates=gates or Gates())
        context = BuildContext(
            recipe=recipe,
            model=model_from_name("tiny", tracker=True),
            root=tmp_path,
            parts=TRACK.parts,
        )
        return follow.follow_bundle(context)

    return run


def test_the_same_parts_answer_the_same(ask: Callable[..., Any], tmp_path: Path) -> None:
    made = ask()
    clicks, tracks = made.figures
    assert clicks["clicks"] >= follow.LEAST["clicks"]
    assert clicks["click_iou"] == clicks["worst_iou"] == 1
    assert tracks["tracks"] == tracks["measured_tracks"] >= follow.LEAST["tracks"]
    assert tracks["track_iou"] == 1
    assert tracks["births_alike"] == tracks["ends_alike"] == tracks["tracks"]
    assert made.gates == {"click_iou": 0.98, "track_iou": 0.98}
    assert made.notes == ()
    assert made.outputs == (follow.REPORT, TRACKS_NAME)
    assert all((tmp_path / name).is_file() for name in made.outputs)


def test_a_bundle_for_another_machine_carries_what_it_is_asked_there(
    ask: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = SimpleNamespace(version=lambda: None)
    monkeypatch.setattr(follow, "backend_from_name", lambda _: nowhere)
    made = ask()
    assert (made.outputs, made.notes, made.gates) == ((TRACKS_NAME,), (follow.NOT_RUN,), {})
    table = json.loads((tmp_path / TRACKS_NAME).read_text())
    assert [len(one["points"]) >= 1 for one in table["clicks"]] == [True, True]
    (clip,) = table["clips"]
    assert (clip["frames"], len(clip["by_phrase"]), len(clip["by_click"])) == (2, 2, 2)


def test_clicks_that_land_elsewhere_are_stopped(ask: Callable[..., Any], tmp_path: Path) -> None:
    def moved(tensors: dict[str, Array]) -> dict[str, Array]:
        return tensors | {"points": tensors["points"] + np.float32(40)}

    with pytest.raises(FidelityError, match=r"click_iou is 0\.\d+, the gate is 0\.98"):
        ask({POINT_DECODER: moved})
    assert (tmp_path / follow.REPORT).is_file()


def test_a_tracker_that_forgets_is_stopped(ask: Callable[..., Any]) -> None:
    """Clicks are right, and every mask of a first frame."""

    def emptied(tensors: dict[str, Array]) -> dict[str, Array]:
        return tensors | {name: tensors[name] * 0 for name in ("memory", "pointers")}

    with pytest.raises(FidelityError, match=r"track_iou is 0\.\d+, the gate is 0\.98"):
        ask({MEMORY_ATTENTION: emptied})


def test_little_evidence_is_not_enough(
    ask: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "PICTURES", 1)
    monkeypatch.setattr(follow, "MOST_CLICKED", 2)
    with pytest.raises(FidelityError, match=r"Weak evidence .* 2 clicks of 8 at least"):
        ask()
    made = ask(gates=replace(Gates(), weak_evidence=True))
    assert len(made.notes) == 1
    assert "2 clicks of 8" in made.notes[0]
