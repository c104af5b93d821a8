"""What the tracker's parts are measured on: moving pictures, none of which a bundle is held to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from samforge.core.capabilities import MEMORY_ATTENTION, TRACK, TRACKER_PARTS
from samforge.core.errors import SettingError
from samforge.core.recipe import Gates, Quantization, Recipe
from samforge.core.session import Array, Session, Tensors
from samforge.models.eager import EagerSession
from samforge.models.loading import model_from_name
from samforge.steps import calibrate, follow, tracker_trials
from samforge.steps import calibrate_tracker as step
from samforge.steps.calibrate import SEEN, calibration_samples
from samforge.steps.context import BuildContext
from samforge.transform.quantize.placement import placement


class Forgetful(EagerSession):
    """Memory attention that is fed memories of zeros."""

    def run(self, tensors: Tensors) -> dict[str, Array]:
        return super().run(
            {**tensors, **{name: tensors[name] * 0 for name in ("memory", "pointers")}}
        )


@pytest.fixture(scope="module")
def parts(one_thread: None) -> Callable[[str], Any]:
    return lru_cache(model_from_name("tiny", tracker=True).part)


def context(root: Path, names: tuple[str, ...] = TRACK.parts, **settings: Any) -> BuildContext:
    recipe = Recipe(tracker=True, precision="int8", **settings)
    model = model_from_name("tiny", tracker=True, random_weights=recipe.random_weights)
    return BuildContext(recipe=recipe, model=model, root=root, parts=names)


@pytest.fixture(scope="module")
def calibrated(
    parts: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[BuildContext, Any]:
    """The step on two pictures and one short clip, and what it made."""
    mine = context(tmp_path_factory.mktemp("calibrated"))
    with pytest.MonkeyPatch.context() as patch:
        _few(patch, parts)
        made = step.calibrate_tracker(mine)
    return mine, made


def _few(patch: pytest.MonkeyPatch, parts: Callable[[str], Any]) -> None:
    def sessions(_: BuildContext, names: Iterable[str] = TRACK.parts) -> dict[str, Session]:
        return {name: EagerSession(parts(name)) for name in names}

    for name, value in {"PICTURES": 2, "CLIPS": 1, "FRAMES": 5, "MOST_SAMPLES": 6}.items():
        patch.setattr(step, name, value)
    patch.setattr(step, "float_sessions", sessions)


def test_every_part_is_fed_what_tracking_feeds_it(calibrated: tuple[BuildContext, Any]) -> None:
    mine, made = calibrated
    counts = {row["part"]: row["samples"] for row in made.figures}
    assert tuple(counts) == TRACKER_PARTS
    for part in TRACKER_PARTS:
        samples = list(calibration_samples(mine, part)())
        assert 0 < len(samples) == counts[part] <= 6
        names = {one.name for one in mine.spec(part).inputs}
        assert all(sample.keys() == names for sample in samples)
    assert all((mine.root / path).is_file() for path in made.outputs)
    remembered = {
        sample["memory"].shape[1] for sample in calibration_samples(mine, MEMORY_ATTENTION)()
    }
    assert len(remembered) > 1  # not the beginning of a clip alone
    points = list(calibration_samples(mine, "point_decoder")())
    assert any(bool(sample["has_mask"].any()) for sample in points)
    assert {0, 2, 3} <= {int(one) for sample in points for one in sample["point_labels"].flatten()}


def test_what_fp32_answers_is_kept(calibrated: tuple[BuildContext, Any]) -> None:
    mine, _ = calibrated
    table = json.loads((mine.root / step.TRACKS).read_text())
    assert (len(table["clicks"]), len(table["clips"])) == (2, 1)
    assert len(list((mine.root / SEEN).glob("*.npz"))) >= 2 + 5


def test_a_bundle_is_not_held_to_what_it_was_calibrated_on(tmp_path: Path) -> None:
    mine = context(tmp_path)
    shown = [clip[0][0] for clip in step._clips(mine)]
    held = follow.clips_of(mine, (), split="demo", first=0, count=follow.CLIPS, frames=1)
    for frames, _ in held:
        assert not any(np.array_equal(frames[0], other) for other in shown)


def test_a_trial_tells_a_tracker_that_forgets(
    calibrated: tuple[BuildContext, Any],
    parts: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine, _ = calibrated
    _few(monkeypatch, parts)
    programs: Any = type("Programs", (), {"calibrated": type("C", (), {"part": MEMORY_ATTENTION})})
    kinds = {(): Forgetful, ("all",): EagerSession}
    monkeypatch.setattr(
        tracker_trials, "trial_session", lambda _, __, kept: kinds[kept](parts(MEMORY_ATTENTION))
    )
    trials = tracker_trials.TrackerTrials(mine, programs)
    kept = trials.fidelity(("all",))
    assert kept.measured == {"click_iou": 1, "track_iou": 1}
    assert trials.holds(("all",))
    assert not trials.holds(())
    loose = context(mine.root, gates=Gates(click_iou=0, track_iou=0))
    assert tracker_trials.TrackerTrials(loose, programs).holds(())


def test_parts_that_work_together_are_built_together(tmp_path: Path) -> None:
    some = ("vision", "text", "detector", "memory_attention")
    with pytest.raises(SettingError, match=r"memory_attention cannot be calibrated without point"):
        step.calibrate_tracker(context(tmp_path, some))


def test_what_segments_is_calibrated_together(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="vision, detector must be built with them"):
        calibrate.require_segmenting(context(tmp_path, ("text",)), ("text",))


def test_random_weights_are_fed_random_tensors(tmp_path: Path) -> None:
    mine = context(tmp_path, random_weights=True)
    made = step.calibrate_tracker(mine)
    assert {row["samples"] for row in made.figures} == {step.RANDOM_SAMPLES}
    (first, _) = calibration_samples(mine, MEMORY_ATTENTION)()
    assert tuple(first["memory"].shape[:2]) == (step.RANDOM_SIZE, step.RANDOM_SIZE)


def test_what_tracks_are_decided_by_stays_float() -> None:
    heads = ("iou_head", "score_head", "hypernetworks")

    class Tracker(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.neck = nn.ModuleDict({"conv_s0": nn.Linear(4, 4)})
            self.pointer_time = nn.Linear(4, 4)
            self.pointer = nn.ModuleDict({"projection": nn.Linear(4, 4)})
            self.decoder = nn.ModuleDict({name: nn.Linear(4, 4) for name in (*heads, "mlp")})

        def forward(self, values: Tensor) -> Tensor:
            for layer in (self.neck["conv_s0"], self.pointer_time, self.pointer["projection"]):
                values = layer(values)
            for layer in self.decoder.values():
                values = layer(values)
            return values

    program = torch.export.export(Tracker().eval(), (torch.zeros(2, 4),))
    placed = placement(program.module(), "tracking_decoder", Quantization())
    assert [site.path for site in placed.sites] == ["decoder.mlp"]
    assert {one.path for one in placed.left} == {
        *("neck.conv_s0", "pointer_time", "pointer.projection"),
        *(f"decoder.{name}" for name in heads),
    }
