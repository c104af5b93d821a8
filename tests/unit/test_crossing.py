"""Clips that only memory solves: repeatable, split, and with all that makes them hard."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pytest

from samforge.core.errors import SettingError
from samforge.models.tiny.crossing import FRAMES, LEAST_PIXELS, draw_crossing, plan_crossing
from samforge.models.tiny.held_out_clips import labelled_clips
from samforge.models.tiny.scenes import SIZE, SPLITS, Scene

CLIPS = 40


@lru_cache(maxsize=CLIPS)
def small(seed: int) -> tuple[Scene, ...]:
    """A clip at a quarter of its side."""
    return tuple(draw_crossing(seed, size=56))


def outside(seed: int) -> npt.NDArray[np.bool_]:
    """(T, S), whether a shape has left the picture."""
    poses = plan_crossing(seed).poses(np.arange(FRAMES, dtype=np.float64))
    place, radius = poses[..., :2], poses[..., 2:3]
    gone: npt.NDArray[np.bool_] = ((place + radius < 0) | (place - radius > SIZE)).any(-1)
    return gone


def gaps(seen: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """Frames on which an object is not to be seen that was before and will be again."""
    there = np.flatnonzero(seen)
    return np.setdiff1d(np.arange(there[0], there[-1]), there) if len(there) else there


def test_a_clip_is_a_function_of_its_split_and_number() -> None:
    one, again = (list(draw_crossing(3, frames=3, size=112)) for _ in range(2))
    for first, second in zip(one, again, strict=True):
        assert np.array_equal(first.image, second.image)
        assert np.array_equal(first.instances, second.instances)
    # What comes later does not change what was.
    longer = next(draw_crossing(3, frames=9, size=112))
    assert np.array_equal(longer.image, one[0].image)


def test_no_clip_is_in_two_splits() -> None:
    plans = {
        (split, seed): plan_crossing(seed, split=split) for split in SPLITS for seed in range(100)
    }
    starts = {tuple(plan.start.ravel()) for plan in plans.values()}
    assert len(starts) == len(plans)
    grounds = {
        next(draw_crossing(seed, split=split, size=56)).image.tobytes()
        for split in SPLITS
        for seed in range(8)
    }
    assert len(grounds) == 8 * len(SPLITS)


def test_places_are_a_formula_of_the_frame() -> None:
    plan = plan_crossing(5)
    all_of = plan.poses(np.arange(40.0))
    assert np.array_equal(plan.poses(np.array([31.0, 7.0])), all_of[[31, 7]])
    steps = np.linalg.norm(np.diff(all_of[..., :2], axis=0), axis=-1)
    speed = np.linalg.norm(plan.speed, axis=1)
    assert (steps <= speed + 1e-9).all(), "shapes turn back, and never jump"
    assert np.allclose(all_of[3, :, 3] - all_of[2, :, 3], plan.spin)


def test_shapes_are_hidden_and_come_back() -> None:
    hidden = left = partly = 0
    for seed in range(CLIPS):
        shares = np.array([scene.visible_shares for scene in small(seed)])
        away = outside(seed)
        for index, own in enumerate(shares.T):
            missing = gaps(own > 0)
            hidden += bool((~away[missing, index]).any())
            left += bool(away[missing, index].any())
            partly += bool(((own > 0) & (own < 0.5)).any())
    # Of 192 shapes: 47 go behind another one and come back, 11 leave and come back.
    assert hidden >= 40
    assert left >= 8
    assert partly >= 90


def test_shapes_leave_and_some_come_late() -> None:
    gone = [outside(seed) for seed in range(CLIPS)]
    assert sum(own.any() for own in gone) >= 20
    late = [np.array([scene.visible_shares > 0 for scene in small(seed)]) for seed in range(CLIPS)]
    assert sum((~own[0] & own.any(0)).sum() for own in late) >= 3


def test_look_alikes_meet() -> None:
    scenes = [small(seed)[0] for seed in range(CLIPS)]
    assert sum(len(scene.concepts) < len(scene.shapes) for scene in scenes) >= 24


def test_the_first_mover_stays_so_that_no_clip_is_empty() -> None:
    for seed in range(CLIPS):
        assert not outside(seed).all(1).any()
        assert all((scene.instances > 0).any() for scene in small(seed))


def test_masks_boxes_and_shares_tell_the_same() -> None:
    for scene in list(draw_crossing(1, frames=32))[::4]:
        for index, mask in enumerate(scene.masks):
            left, top, right, bottom = scene.boxes_xyxy[index].astype(int)
            assert mask.sum() == mask[top:bottom, left:right].sum()
            assert (mask.sum() == 0) == (scene.visible_shares[index] == 0)
            assert mask.sum() == 0 or mask.sum() >= LEAST_PIXELS
            assert 0 <= scene.visible_shares[index] <= 1.05


def test_labelled_clips_are_those_clips() -> None:
    (clip,) = labelled_clips(1, first=6, frames=5, size=56)
    scenes = list(draw_crossing(6, frames=5, size=56))
    assert (clip.name, clip.phrase, len(clip.images_rgb)) == ("clip 6", "object", 5)
    for image, masks, scene in zip(clip.images_rgb, clip.masks, scenes, strict=True):
        assert np.array_equal(image, scene.image)
        assert list(masks) == np.flatnonzero(scene.masks.any((1, 2))).tolist()
        assert all(np.array_equal(mask, scene.masks[index]) for index, mask in masks.items())
    assert clip.shown == tuple(np.flatnonzero(scenes[0].visible_shares >= 0.4))
    assert set(clip.shown) <= set(clip.masks[0])


@pytest.mark.parametrize("wrong", [{"split": "test"}, {"seed": -1}])
def test_plans_that_there_are_not(wrong: dict[str, object]) -> None:
    with pytest.raises(SettingError, match="split is one of train, held-out, demo and seed at"):
        plan_crossing(**{"seed": 0, **wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"frames": 0}, {"size": 55}])
def test_clips_that_there_are_not(wrong: dict[str, int]) -> None:
    with pytest.raises(SettingError, match="at least 1 frame and a size of at least 56"):
        draw_crossing(0, **wrong)
