"""Drawn scenes: what is said about a picture is what is in it."""

from __future__ import annotations

import numpy as np
import pytest

from samforge.core.errors import SettingError
from samforge.models.tiny.prompts import (
    MOST_BOXES,
    VISUAL,
    box_prompt,
    mixed_prompt,
    prompt_rng,
    text_prompt,
)
from samforge.models.tiny.scenes import (
    COLOURS,
    MOST_INSTANCES,
    SHAPES,
    Scene,
    draw_scene,
    vocabulary,
)

SCENES = [draw_scene(seed) for seed in range(60)]


def scene_of(*concepts: str) -> Scene:
    """A scene without a picture: one instance a concept, one column of pixels each."""
    count = len(concepts)
    instances = np.tile(np.arange(1, count + 1, dtype=np.uint8), (4, 1))
    boxes = [(i, 0, i + 1, 4) for i in range(count)]
    return Scene(
        image=np.zeros((4, count, 3), np.uint8),
        instances=instances,
        shapes=tuple(concept.split()[1] for concept in concepts),
        colours=tuple(concept.split()[0] for concept in concepts),
        boxes_xyxy=np.array(boxes, np.float32),
        visible_shares=np.ones(count, np.float32),
    )


def test_same_seed_draws_the_same_scene() -> None:
    first, second = draw_scene(7), draw_scene(7)
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.instances, second.instances)
    assert (first.shapes, first.colours) == (second.shapes, second.colours)


def test_splits_and_seeds_draw_different_pictures() -> None:
    pictures = {
        draw_scene(seed, split=split).image.tobytes()
        for split in ("train", "held-out", "demo")
        for seed in range(5)
    }
    assert len(pictures) == 15


def test_wrong_settings_are_named() -> None:
    with pytest.raises(SettingError, match="train, held-out, demo, got 'test'"):
        draw_scene(0, split="test")
    with pytest.raises(SettingError, match="seed is at least 0"):
        draw_scene(-1)


@pytest.mark.parametrize("scene", SCENES[:20], ids=str)
def test_masks_and_boxes_follow_the_instance_map(scene: Scene) -> None:
    masks = scene.masks
    assert masks.shape == (len(scene.shapes), 224, 224)
    assert masks.sum(0).max() <= 1
    assert np.array_equal(masks.any(0), scene.instances > 0)
    for index, mask in enumerate(masks):
        left, top, right, bottom = scene.boxes_xyxy[index].astype(int)
        assert (
            mask[top:bottom, left:right].sum() == mask.sum() == (scene.instances == index + 1).sum()
        )
        edges = (mask[top], mask[bottom - 1], mask[:, left], mask[:, right - 1])
        assert all(edge.any() for edge in edges)


def test_every_instance_stays_recognizable() -> None:
    for scene in SCENES:
        assert 1 <= len(scene.shapes) <= MOST_INSTANCES
        assert scene.visible_shares.min() >= 0.35
        assert scene.masks.sum((1, 2)).min() >= 120


def test_shapes_occlude_each_other_and_concepts_repeat() -> None:
    shares = np.concatenate([scene.visible_shares for scene in SCENES])
    assert (shares < 0.9).mean() > 0.1
    repeated = [len(scene.concepts) < len(scene.shapes) for scene in SCENES]
    assert np.mean(repeated) > 0.5


def test_unhidden_shapes_cover_their_closed_form_area() -> None:
    for shape in SHAPES:
        shares = [
            share
            for scene in SCENES
            for own, share in zip(scene.shapes, scene.visible_shares, strict=True)
            if own == shape
        ]
        assert max(shares) == pytest.approx(1.0, abs=0.03)


def test_colours_stand_out_from_the_ground() -> None:
    for scene in SCENES:
        ground = scene.image[scene.instances == 0].mean(0)
        for mask in scene.masks:
            assert np.abs(scene.image[mask].mean(0) - ground).max() > 40


def test_a_larger_picture_has_larger_shapes() -> None:
    areas = {
        size: np.mean([draw_scene(seed, size=size).masks.sum((1, 2)).mean() for seed in range(20)])
        for size in (224, 448)
    }
    assert draw_scene(0, size=448).image.shape == (448, 448, 3)
    assert areas[448] / areas[224] == pytest.approx(4.0, rel=0.3)


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("red circle", [0, 2]),
        ("Red Circle", [0, 2]),
        ("circle", [0, 1, 2]),
        ("blue object", [1, 3]),
        ("object", [0, 1, 2, 3]),
        ("green circle", []),
        ("ring", []),
        ("zebra", []),
        ("red", []),
        ("visual", []),
        ("", []),
    ],
)
def test_phrases_match_what_they_name(phrase: str, expected: list[int]) -> None:
    scene = scene_of("red circle", "blue circle", "red circle", "blue star")
    assert scene.matching(phrase).tolist() == expected


def test_present_and_absent_phrases_part_the_vocabulary() -> None:
    scene = scene_of("red circle", "blue star")
    assert scene.phrases() == (
        "object",
        "circle",
        "star",
        "red object",
        "blue object",
        "red circle",
        "blue star",
    )
    assert set(scene.phrases()) | set(scene.absent_phrases()) == set(vocabulary())
    assert len(vocabulary()) == 1 + len(SHAPES) + len(COLOURS) + len(SHAPES) * len(COLOURS)


def test_a_quarter_of_the_phrases_is_absent_and_many_are_near_misses() -> None:
    absent = near = 0
    for seed in range(40):
        rng = prompt_rng(seed)
        for _ in range(20):
            scene = SCENES[seed]
            prompt = text_prompt(scene, rng)
            assert prompt.targets.tolist() == scene.matching(prompt.text).tolist()
            assert not prompt.has_boxes
            if not len(prompt.targets):
                absent += 1
                near += bool(set(prompt.text.split()) & {*scene.shapes, *scene.colours})
    assert absent / 800 == pytest.approx(0.25, abs=0.06)
    assert near / absent > 0.5


def test_boxes_ask_for_everything_like_their_positives() -> None:
    for seed, scene in enumerate(SCENES):
        prompt = box_prompt(scene, prompt_rng(seed))
        assert prompt.text == VISUAL
        assert 1 <= len(prompt.box_labels) <= MOST_BOXES
        wanted: set[int] = set()
        for box, label in zip(prompt.boxes_xyxy, prompt.box_labels, strict=True):
            (index,) = np.flatnonzero((scene.boxes_xyxy == box).all(1))
            if label == 1:
                wanted |= set(scene.alike(int(index)).tolist())
            else:
                assert index not in prompt.targets
        assert prompt.targets.tolist() == sorted(wanted)


def test_a_negative_box_takes_its_likes_away() -> None:
    scene = scene_of("red circle", "blue circle", "red circle", "red star")
    answers = set()
    for seed in range(200):
        prompt = mixed_prompt(scene, prompt_rng(seed))
        assert len(prompt.box_labels) == 1
        if prompt.box_labels[0] == 0:
            (index,) = np.flatnonzero((scene.boxes_xyxy == prompt.boxes_xyxy[0]).all(1))
            answers.add((prompt.text, int(index), tuple(prompt.targets.tolist())))
        else:
            assert prompt.targets.tolist() == scene.matching(prompt.text).tolist()
    assert ("circle", 1, (0, 2)) in answers
    assert ("circle", 0, (1,)) in answers
    assert ("red object", 3, (0, 2)) in answers
    assert all(targets for _, _, targets in answers)


def test_exemplar_boxes_are_shaken_inside_the_picture() -> None:
    scene = SCENES[0]
    plain = box_prompt(scene, prompt_rng(0))
    shaken = box_prompt(scene, prompt_rng(0), jitter_px=3.0)
    assert plain.targets.tolist() == shaken.targets.tolist()
    moved = np.abs(plain.boxes_xyxy - shaken.boxes_xyxy)
    assert 0 < moved.max() <= 3.0
    assert shaken.boxes_xyxy.min() >= 0
    assert shaken.boxes_xyxy.max() <= 224
