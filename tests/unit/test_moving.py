"""The drawn clip: repeatable, true to its masks, and moving the way its docstring says."""

from __future__ import annotations

import numpy as np
import pytest

from samforge.core.errors import SettingError
from samforge.models.tiny import draw_scene
from samforge.models.tiny.moving import draw_clip


def test_a_clip_is_a_function_of_its_seed() -> None:
    one, again = (list(draw_clip(3, frames=4, size=112)) for _ in range(2))
    for first, second in zip(one, again, strict=True):
        assert np.array_equal(first.image, second.image)
        assert np.array_equal(first.instances, second.instances)
    other = next(draw_clip(4, frames=1, size=112))
    assert not np.array_equal(other.image, one[0].image)
    assert not np.array_equal(draw_scene(3, size=112).image, one[0].image)


def test_phrases_of_every_kind_mean_something() -> None:
    scene = next(draw_clip(0, frames=1))
    colour, shape = scene.colours[0], scene.shapes[0]
    assert scene.matching(f"{colour} {shape}").tolist() == [0, 1]
    assert scene.matching(f"{colour} object").tolist() == [0, 1, 2]
    assert scene.matching(shape).tolist() == [0, 1, 3]
    assert len(scene.matching("object")) == 5


def test_shapes_keep_their_number_and_colour_and_move_smoothly() -> None:
    scenes = list(draw_clip(1, frames=90, size=112))
    centres = np.array([[np.argwhere(mask).mean(0) for mask in scene.masks] for scene in scenes])
    steps = np.linalg.norm(np.diff(centres, axis=0), axis=-1)
    # Collisions speed the small ones up; the bound is far below a shape's size.
    assert steps.max() < 5
    assert np.median(steps) > 0.3
    assert {scene.colours for scene in scenes} == {scenes[0].colours}
    for index in range(5):
        tints = [scene.image[scene.masks[index]].mean(0) for scene in scenes[::10]]
        assert np.ptp(tints, axis=0).max() < 6, "the tint does not flicker"


@pytest.mark.parametrize("seed", range(3))
def test_nothing_hides_or_leaves(seed: int) -> None:
    for scene in draw_clip(seed, frames=120, shapes=6, size=84, frame_rate=15):
        assert scene.visible_shares.min() > 0.85
        left_top, right_bottom = scene.boxes_xyxy[:, :2], scene.boxes_xyxy[:, 2:]
        assert (left_top >= 0).all()
        assert (right_bottom <= 84).all()


def test_a_higher_frame_rate_shows_the_same_motion_in_more_pictures() -> None:
    slow = list(draw_clip(2, frames=4, shapes=1, size=112, frame_rate=10))[-1]
    fast = list(draw_clip(2, frames=13, shapes=1, size=112, frame_rate=40))[-1]
    assert np.abs(slow.boxes_xyxy - fast.boxes_xyxy).max() <= 1


@pytest.mark.parametrize(
    "wrong",
    [{"seed": -1}, {"frames": 0}, {"shapes": 0}, {"shapes": 7}, {"size": 55}, {"frame_rate": 0.0}],
)
def test_numbers_outside_what_is_allowed(wrong: dict[str, int]) -> None:
    with pytest.raises(SettingError, match="A clip has a seed from 0, at least 1 frame, 1 to 6"):
        draw_clip(**{"seed": 0, **wrong})
