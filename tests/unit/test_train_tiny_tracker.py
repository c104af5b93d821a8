"""The tracker's training tool: it draws what the clips draw, and its losses are what they say."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from samforge.models import tiny
from samforge.models.tiny.crossing import draw_crossing, plan_crossing
from samforge.models.tiny.scenes import MOST_INSTANCES, SHAPES

TOOLS = str(Path(__file__).resolve().parents[2] / "tools")


@pytest.fixture(scope="module")
def clips(one_thread: None) -> Iterator[Any]:
    """``tools/tiny_training/clips.py``; its folder is importable meanwhile only."""
    sys.path.insert(0, TOOLS)
    try:
        yield importlib.import_module("tiny_training.clips")
    finally:
        sys.path.remove(TOOLS)


@pytest.fixture(scope="module")
def losses(clips: Any) -> Any:
    return importlib.import_module("tiny_training.tracker_losses")


# Clips


def test_what_is_drawn_is_what_the_clips_draw(clips: Any) -> None:
    frames = 6
    kinds: set[str] = set()
    for seed in range(4):
        plan = plan_crossing(seed, split="train")
        plans = clips.Plans(
            shapes=torch.from_numpy(plan.shapes)[None],
            tints=torch.from_numpy(plan.tints)[None],
            poses=torch.from_numpy(plan.poses(np.arange(frames) * 1.0)[None]).float(),
        )
        images, instances = clips.draw_clips(plans, torch.Generator().manual_seed(0))
        assert images.shape == (1, frames, 3, 224, 224)
        scenes = list(draw_crossing(seed, frames=frames, split="train"))
        for frame, scene in enumerate(scenes):
            drawn = instances[0, frame].numpy()
            # Slivers that count as hidden are cut out later, by whoever trains.
            seen = np.isin(drawn, [0, *(np.flatnonzero(scene.visible_shares) + 1)])
            assert np.mean(drawn[seen] != scene.instances[seen]) < 2e-4
            assert np.mean(~seen) < 24 * len(plan.shapes) / 224**2
            rgb = (images[0, frame].permute(1, 2, 0).numpy() + 1) * 127.5
            for index in np.flatnonzero(scene.visible_shares > 0.5).tolist():
                inside = scene.instances == index + 1
                off = rgb[inside].mean(0) - scene.image[inside].mean(0)
                assert np.abs(off).max() < 1.5, "levels of 255"
        kinds |= {SHAPES[shape] for shape in plan.shapes}
    assert kinds == set(SHAPES)


def test_plans_depend_on_their_number_alone(clips: Any) -> None:
    one, again, other = (clips.make_plans(index, 3, 4) for index in (5, 5, 6))
    for name in ("shapes", "tints", "poses"):
        assert torch.equal(getattr(one, name), getattr(again, name))
    assert one.poses.shape == (3, 4, one.shapes.shape[1], 4)
    assert one.shapes.shape[1] <= MOST_INSTANCES
    assert one.poses.shape != other.poses.shape or not torch.equal(one.poses, other.poses)
    batches = clips.planned_batches(5, 3, 4, workers=0)
    assert torch.equal(next(batches).poses, one.poses)
    assert torch.equal(next(batches).poses, other.poses)


def test_training_shows_clips_of_its_own_split(clips: Any) -> None:
    plans = clips.make_plans(0, 8, 2)
    for seed in range(8):
        plan = plan_crossing(seed, split="train")
        count = len(plan.shapes)
        assert plans.shapes[seed, :count].tolist() == plan.shapes.tolist()
        assert (plans.shapes[seed, count:] == -1).all()
        assert torch.equal(plans.tints[seed, :count], torch.from_numpy(plan.tints))


def test_frames_are_uneven_and_some_lie_far_apart(clips: Any) -> None:
    gaps = np.stack([np.diff(clips._times(np.random.default_rng(seed), 8)) for seed in range(200)])
    assert gaps.min() >= 1
    assert set(np.unique(np.median(gaps, 1))) <= set(np.arange(1, 5.5, 0.5))
    assert 0.4 < np.mean(gaps.max(1) > 5) < 0.6, "half of the clips have a long gap"


def test_an_absent_shape_is_not_drawn(clips: Any) -> None:
    plans = clips.Plans(
        shapes=torch.tensor([[-1, SHAPES.index("square")]]),
        tints=torch.zeros(1, 2, 3),
        poses=torch.tensor([100.0, 60.0, 20.0, 0.0]).expand(1, 1, 2, 4),
    )
    _, instances = clips.draw_clips(plans, torch.Generator().manual_seed(0))
    assert instances.unique().tolist() == [0, 2]
    rows, columns = np.nonzero(instances[0, 0].numpy())
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (85, 114, 45, 74)


# Losses


def test_focal_loss(losses: Any) -> None:
    even = torch.zeros(1, 1, 2)
    truth = torch.tensor([[[1.0, 0.0]]])
    # Each probability is one half: a quarter of ln 2, weighed 0.25 and 0.75.
    assert losses.focal(even, truth).item() == pytest.approx(0.5 * 0.25 * math.log(2))
    sure = torch.tensor([[[30.0, -30.0]]])
    assert losses.focal(sure, truth).item() == pytest.approx(0, abs=1e-12)
    assert losses.focal(-sure, truth).item() == pytest.approx(30 * 0.5, rel=1e-5)


def test_dice_loss(losses: Any) -> None:
    truth = torch.tensor([[[1.0, 1.0, 0.0, 0.0]]])
    sure = torch.tensor([[[40.0, 40.0, -40.0, -40.0]]])
    assert losses.dice(sure, truth).item() == pytest.approx(0)
    assert losses.dice(-sure, truth).item() == pytest.approx(1 - 1 / 5)
    assert losses.dice(torch.zeros(1, 1, 4), truth).item() == pytest.approx(1 - 3 / 5)


def answer(losses: Any, masks: torch.Tensor, *, iou: float = 0.5, score: float = 0.0) -> Any:
    count = len(masks)
    return losses.Answer(masks, torch.full((count, 4), iou), torch.full((count, 1), score))


def halves() -> tuple[torch.Tensor, torch.Tensor]:
    """Truth (1, 8, 8), its left half, and four masks: nothing, all, the left, the right half."""
    truth = torch.zeros(1, 8, 8)
    truth[..., :4] = 1
    masks = torch.full((1, 4, 8, 8), -20.0)
    masks[:, 1] = 20
    masks[:, 2, :, :4] = 20
    masks[:, 3, :, 4:] = 20
    return truth, masks


@pytest.mark.parametrize(
    ("allowed", "best"),
    [([1, 1, 1, 1], 2), ([0, 1, 0, 1], 1), ([1, 0, 0, 0], 0)],
)
def test_the_best_of_what_is_allowed_is_graded(losses: Any, allowed: list[int], best: int) -> None:
    truth, masks = halves()
    choice = torch.tensor([allowed]).bool()
    found, iou = losses.answer_losses(answer(losses, masks), truth, choice, torch.ones(1))
    assert iou.item() == [0.0, 0.5, 1.0, 0.0][best]
    alone = masks[:, best]
    assert found["dice"].item() == pytest.approx(losses.dice(alone, truth).item(), abs=1e-5)
    assert found["focal"].item() == pytest.approx(20 * losses.focal(alone, truth).item(), abs=1e-5)
    # Every allowed mask is told how right it is, and says 0.5 of itself.
    off = [0.5, 0.0, 0.5, 0.5]
    wanted = np.mean([value for value, kept in zip(off, allowed, strict=True) if kept])
    assert found["iou"].item() == pytest.approx(wanted)
    assert found["score"].item() == pytest.approx(math.log(2))


def test_an_absent_object_has_a_score_and_no_mask(losses: Any) -> None:
    truth, masks = halves()
    every = torch.ones(1, 4).bool()
    one = answer(losses, masks, score=3.0)
    found, _ = losses.answer_losses(one, torch.zeros_like(truth), every, torch.ones(1))
    assert [found[name].item() for name in ("focal", "dice", "iou")] == [0, 0, 0]
    assert found["score"].item() == pytest.approx(math.log1p(math.exp(3.0)), rel=1e-6)


def test_rows_that_fill_the_batch_weigh_nothing(losses: Any) -> None:
    truth, masks = halves()
    every = torch.ones(2, 4).bool()
    both = answer(losses, torch.cat([masks, -masks]), score=1.0)
    truths = torch.cat([truth, 1 - truth])
    found, _ = losses.answer_losses(both, truths, every, torch.tensor([1.0, 0.0]))
    alone, _ = losses.answer_losses(
        answer(losses, masks, score=1.0), truth, every[:1], torch.ones(1)
    )
    for name, value in alone.items():
        assert found[name].item() == pytest.approx(value.item()), name


def test_clicks_fall_into_their_region(losses: Any) -> None:
    region = torch.zeros(3, 40, 60, dtype=torch.bool)
    region[0, 5:36, 10:41] = True
    region[1, 7, 50] = True
    generator = torch.Generator().manual_seed(0)
    for thick in (0.0, 1.0):
        for _ in range(20):
            x, y = losses.click(region, generator, thick=thick).long().unbind(1)
            assert region[0, y[0], x[0]]
            assert (x[1].item(), y[1].item()) == (50, 7)
            assert 0 <= x[2] < 60
            assert 0 <= y[2] < 40
            if thick:  # its whole window lies inside, give or take the noise
                assert abs(x[0] - 25) <= 9
                assert abs(y[0] - 20) <= 9


def test_corrections_say_which_way_the_mask_is_wrong(losses: Any) -> None:
    truth = torch.zeros(3, 32, 32)
    truth[:, :, :16] = 1
    logits = torch.full((3, 1, 32, 32), -10.0)
    logits[0] = 10  # too much: the right half is wrong
    logits[2, :, :, :16] = 10  # right
    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        point, label = losses.correction(logits, truth, generator)
        assert label.tolist() == [0, 1, 0]
        assert point[0, 0] >= 16
        assert point[1, 0] < 16
        assert point[2, 0] >= 16, "where nothing is wrong, beside the object"


def test_boxes_are_as_loose_as_they_are_told(losses: Any) -> None:
    truth = torch.zeros(1, 50, 50)
    truth[0, 10:30, 5:45] = 1
    generator = torch.Generator().manual_seed(0)
    exact = losses.loose_boxes(truth, generator, looseness=0.0)
    assert exact.tolist() == [[[5.0, 10.0], [45.0, 30.0]]]
    loose = torch.cat([losses.loose_boxes(truth, generator, looseness=0.1) for _ in range(50)])
    off = (loose - exact).abs().amax(0)
    assert (off[:, 0] <= 4).all()
    assert (off[:, 1] <= 2).all()
    assert (off > 1).all()


@pytest.mark.usefixtures("clips")
def test_weights_to_start_from_bring_their_positions() -> None:
    """The decoder's positions follow from a random matrix: the file's, and not the seed's."""
    model = importlib.import_module("tiny_training.tracker_model")
    one, other = (model.Tracker(seed, tiny.TRACKER_WEIGHTS_PATH).decoder for seed in (0, 1))
    constants = dict(one.named_buffers())
    assert constants
    for name, tensor in other.named_buffers():
        assert torch.equal(tensor, constants[name]), name
