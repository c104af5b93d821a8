"""What the choice of layers rests on: fp32's answers, kept, and phrases beyond calibration's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from acting import SPECS, World, actors

from samforge.core.errors import FidelityError
from samforge.core.recipe import Calibration, Recipe
from samforge.core.timing import Timings
from samforge.measure.asking import ask
from samforge.measure.segmentation import AccuracyTally, measure_segmenter, tally_from_answers
from samforge.measure.witness import Witness, save_witness, witness_from_file
from samforge.media import write_png
from samforge.models.loading import model_from_name
from samforge.models.tiny import draw_scene, vocabulary
from samforge.steps.calibrate import SEEN, Remembering, segmenter_of
from samforge.steps.context import BuildContext
from samforge.steps.images import (
    calibration_images,
    most_pictures,
    trial_images,
    verification_images,
)
from samforge.steps.phrases import COMMON, more_phrases, phrases_of_picture
from samforge.transform.quantize.sensitivity import GroupDamage, choose_kept


def context(root: Path, **settings: Any) -> BuildContext:
    return BuildContext(
        recipe=Recipe(**{"precision": "int8", **settings}),
        model=model_from_name("tiny"),
        root=root,
        parts=("vision", "text", "detector"),
    )


def test_answers_and_readings_of_fp32_come_back_whole(tmp_path: Path) -> None:
    mine = context(tmp_path)
    images = list(verification_images(mine, 0, 2))
    witness, tally = Witness(), AccuracyTally()
    load = actors(World(images=images))
    answers = {
        one.key: one.found
        for one in ask(
            segmenter_of(mine, witness.sessions(load())), images, timings=Timings(), boxes=False
        )
    }
    measure_segmenter(segmenter_of(mine, load()), images, boxes=False, tally=tally)
    assert tally_from_answers(images, answers).answered == tally.answered
    save_witness(tmp_path / "witness.npz", witness)
    back = witness_from_file(tmp_path / "witness.npz")
    assert back.image == witness.image == 1
    assert len(back.readings) == len(answers)
    for one, other in zip(back.readings, witness.readings, strict=True):
        assert (one.image, one.part, one.presence) == (other.image, other.part, other.presence)
        assert np.array_equal(one.logits, other.logits)
    for one, other in zip(back.features, witness.features, strict=True):
        assert (one.image, one.part, one.tensor) == (other.image, other.part, other.tensor)
        assert np.array_equal(one.channels, other.channels)


def test_the_encoder_runs_once_for_a_picture(tmp_path: Path) -> None:
    mine = context(tmp_path)
    images = list(verification_images(mine, 0, 3))
    loaded = []

    def load() -> Any:
        loaded.append(None)
        return actors(World(images=images))()["vision"]

    def results(most: int | None) -> list[Any]:
        session = Remembering(spec=SPECS["vision"], context=mine, load=load, most=most)
        sessions = {**actors(World(images=images))(), "vision": session}
        segmenter = segmenter_of(mine, sessions)
        return [segmenter.encode(one.image_rgb).features["fpn_0"] for one in images]

    first = results(2)
    assert len(list((tmp_path / SEEN).glob("*.npz"))) == 2
    assert all(map(np.array_equal, first, results(None)))
    assert len(loaded) == 2  # for the third picture, which was not kept
    assert all(map(np.array_equal, first, results(None)))
    assert len(loaded) == 2


def test_trials_ask_absent_phrases_of_calibrations_own_images(tmp_path: Path) -> None:
    mine = context(tmp_path)
    first, second = trial_images(mine, 0, 2)
    own = list(calibration_images(mine))
    assert np.array_equal(second.image_rgb, own[1].image_rgb)
    assert len(first.questions) > len(own[0].questions) + 4
    absent = [one for one in first.questions if one.text and not len(one.masks)]
    assert len(absent) >= 4
    texts = [one.text for one in first.questions if one.boxes_xyxy is None]
    assert len(set(texts[2:])) == len(texts[2:])


def test_verification_asks_other_phrases_than_calibration_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(12):
        write_png(folder / f"{number:02d}.png", draw_scene(number, split="demo").image)
    mine = context(tmp_path, calibration=Calibration(source=folder, samples=4, prompts=("star",)))
    one, other = list(verification_images(mine))[:2]
    asked = [[q.text for q in image.questions if q.boxes_xyxy is None] for image in (one, other)]
    assert [len(texts) for texts in asked] == [7, 7]
    assert asked[0][0] == asked[1][0] == "star"
    assert not set(asked[0][1:]) & set(asked[1][1:])
    assert set(asked[0]) <= set(vocabulary())  # this model reads no other words
    # Four were calibrated on and four are verified on; the last four come where that is too little.
    assert most_pictures(mine) == 8
    names = [image.name for image in verification_images(mine, 0, 8)]
    assert len(set(names)) == 8
    assert not set(names) & {image.name for image in calibration_images(mine)}


def test_every_picture_is_asked_the_next_phrases(tmp_path: Path) -> None:
    assert phrases_of_picture(COMMON, 0, 3) == COMMON[:3]
    assert phrases_of_picture(COMMON, 1, 3) == COMMON[3:6]
    assert phrases_of_picture(("a", "b"), 5, 3) == ("b", "a")
    assert phrases_of_picture((), 5, 3) == ()
    assert "star" not in more_phrases(context(tmp_path, calibration=Calibration(prompts=("star",))))


TABLE = tuple(
    GroupDamage(group=name, share=0.1, sqnr_db=math.inf, damage=1.0) for name in "abcdefgh"
)


def test_as_much_as_is_allowed_is_kept_where_nobody_can_tell() -> None:
    kept = choose_kept(TABLE, lambda _: False, max_kept=0.25, likely=lambda names: len(names) == 2)
    assert [row.group for row in kept if row.kept] == ["a", "b"]
    with pytest.raises(FidelityError, match="The gate does not hold with the 2 worst of 8 groups"):
        choose_kept(TABLE, lambda _: False, max_kept=0.25, likely=lambda _: False)
