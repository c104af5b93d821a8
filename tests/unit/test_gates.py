"""Faults that were planted after conversion, and the gate that refuses each.

What runs is a model that knows its scenes, with the coarseness of int8: it holds every gate. Then
one thing of what a part gives is spoilt, as a wrong kernel or a changed weight does.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from acting import Fault, Outputs, World, actors

from samforge.core.errors import FidelityError
from samforge.core.labelled import LabelledImage, Question
from samforge.core.recipe import Gates, Recipe
from samforge.models.loading import model_from_name
from samforge.steps.context import BuildContext
from samforge.steps.images import Gallery, odd_images, verification_images
from samforge.steps.verify import Verified, check_verified, proven

FIRST, MOST = 16, 32
"""Scenes that verification begins with, and those that the world has."""


def context(root: Path, **settings: Any) -> BuildContext:
    return BuildContext(
        recipe=Recipe(**{"precision": "int8", **settings}),
        model=model_from_name("tiny"),
        root=root,
        parts=("vision", "text", "detector"),
    )


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A world and what is asked about it: drawn once."""

    world: World
    scenes: tuple[LabelledImage, ...]
    odd: tuple[LabelledImage, ...]

    def gallery(self, first: int = FIRST, most: int = MOST) -> Gallery:
        return Gallery(
            odd=lambda: self.odd,
            some=lambda start, count: self.scenes[start : start + count],
            first=first,
            most=most,
        )


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    mine = context(tmp_path_factory.mktemp("world"))
    scenes, odd = tuple(verification_images(mine, 0, MOST)), tuple(odd_images(mine))
    return Stage(world=World(images=[*scenes, *odd]), scenes=scenes, odd=odd)


def held(
    mine: BuildContext,
    stage: Stage,
    fault: Fault | None,
    *,
    noise: float = 1.0,
    gallery: Gallery | None = None,
) -> tuple[Verified, tuple[str, ...]]:
    """Verify as a build does."""
    sides = actors(stage.world), actors(stage.world, fault=fault, noise=noise)
    verified, _ = proven(mine, gallery or stage.gallery(), *sides)
    return verified, check_verified(mine, verified)


def every(number: int, what: str) -> bool:
    """One picture or phrase in so many."""
    return zlib.crc32(what.encode()) % number == 0


def on(part: str, tensor: str, change: Any) -> Fault:
    """A fault of one output of one part."""

    def fault(name: str, out: Outputs, what: str, rng: np.random.Generator) -> Outputs:
        return {**out, tensor: change(out[tensor].copy(), what)} if name == part else out

    return fault


def _channel(array: Any, what: str) -> Any:
    array[:, 5] *= 4
    return array


def _nan_for_black(array: Any, what: str) -> Any:
    if what == "black":
        array[0, 0, 0, 0] = np.nan
    return array


def _nan_in_a_box_nobody_sees(array: Any, what: str) -> Any:
    array[0, 0, -1] = np.nan
    return array


def _infinite_for_white(array: Any, what: str) -> Any:
    if what == "white":
        array[0, :, -1, 0, 0] = np.inf
    return array


def _lost(array: Any, what: str) -> Any:
    if every(5, what):
        array[0, :, 0] = -6
    return array


def _first_lost(array: Any, what: str) -> Any:
    array[0, :, 0] = -6
    return array


def _unseen(array: Any, what: str) -> Any:
    if every(4, what):
        array[...] = np.where(array > 0, -1, array)
    return array


def _made_up(name: str, out: Outputs, what: str, rng: np.random.Generator) -> Outputs:
    if name != "detector" or not every(4, what):
        return out
    logits, presence = out["pred_logits"].copy(), np.abs(out["presence_logit"])
    logits[..., -1] = 3.0
    return {**out, "pred_logits": logits, "presence_logit": presence}


FAULTS: dict[str, tuple[Fault, str]] = {
    "all boxes zero": (on("detector", "pred_boxes", lambda a, _: a * 0), "box_iou"),
    "boxes half as large": (on("detector", "pred_boxes", lambda a, _: a * 0.5), "box_iou"),
    "boxes in another order": (
        on("detector", "pred_boxes", lambda a, _: a[..., [1, 0, 3, 2]]),
        "box_iou",
    ),
    "logits times 0.25": (on("detector", "pred_logits", lambda a, _: a * 0.25), "score_shift"),
    "logits plus 1": (on("detector", "pred_logits", lambda a, _: a + 1), "logit_shift"),
    "presence minus 2": (on("detector", "presence_logit", lambda a, _: a - 2), "presence_shift"),
    "presence plus 3": (on("detector", "presence_logit", lambda a, _: a + 3), "presence_shift"),
    "presence of nothing near the threshold": (
        on("detector", "presence_logit", lambda a, _: np.where(a < 0, 2.0, a).astype(np.float32)),
        "presence_shift",
    ),
    "logits of nothing higher by 4": (
        on("detector", "pred_logits", lambda a, _: np.where(a < 0, a + 4, a).astype(np.float32)),
        "logit_shift",
    ),
    "one channel times 4": (on("vision", "fpn_0", _channel), "channel_gain"),
    "activations clipped at 1": (
        on("vision", "fpn_0", lambda a, _: a.clip(-1, 1)),
        "feature_cosine",
    ),
    "activations clipped where only white pictures reach": (
        on("vision", "fpn_0", lambda a, _: a.clip(-3.2, 3.2)),
        "odd_cosine",
    ),
    "NaN for a black picture": (on("vision", "fpn_0", _nan_for_black), "finite"),
    "NaN in a box that no score admits": (
        on("detector", "pred_boxes", _nan_in_a_box_nobody_sees),
        "finite",
    ),
    "infinity in a mask of a white picture": (
        on("detector", "pred_masks", _infinite_for_white),
        "finite",
    ),
    "masks shifted by two cells": (
        on("detector", "pred_masks", lambda a, _: np.roll(a, 2, -1)),
        "mask_iou",
    ),
    "the first object lost in a fifth of the pictures": (
        on("detector", "pred_logits", _lost),
        "cgf1_drop",
    ),
    "the first object lost in every picture": (
        on("detector", "pred_logits", _first_lost),
        "agreement",
    ),
    "everything lost in a quarter of the pictures": (
        on("detector", "presence_logit", _unseen),
        "cgf1_drop",
    ),
    "objects made up in a quarter of the pictures": (_made_up, "cgf1_alike"),
}


def test_a_good_bundle_holds_every_gate_and_says_on_what_evidence(
    stage: Stage, tmp_path: Path
) -> None:
    verified, notes = held(context(tmp_path), stage, None)
    verdict = verified.verdict
    assert verdict.held
    assert notes == ()
    assert (verdict.evidence.images, verdict.evidence.made_up) == (FIRST, 0)
    assert verdict.evidence.objects > 150
    assert verdict.evidence.present > 50
    assert verdict.evidence.absent > 50
    figures = {one.gate: one.interval for one in verdict.judged}
    assert figures["box_iou"].low < figures["box_iou"].value < figures["box_iou"].high
    assert 0.1 < figures["logit_shift"].value < 0.14  # 0.15 times the mean of |a normal number|
    assert figures["mask_iou"].value == figures["agreement"].value == 1.0
    assert figures["cgf1_alike"].value == 1.0
    assert figures["cgf1_drop"].value == 0.0
    assert 1.0 < figures["channel_gain"].value < 1.02
    assert verdict.measured["channel_gain"] == 1.5
    names = ["black", "white", "of one colour", "saturated", "noise"]
    assert [one.name for one in verified.odd] == names
    assert max(one.odd_logit_shift for one in verified.odd) < 0.6


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_refused_by_its_gate(name: str, stage: Stage, tmp_path: Path) -> None:
    fault, gate = FAULTS[name]
    with pytest.raises(FidelityError, match=rf"{gate}(:| does not hold)"):
        held(context(tmp_path), stage, fault)


@pytest.mark.parametrize("name", ["all boxes zero", "logits plus 1", "NaN for a black picture"])
def test_fp32_is_held_to_pictures_too(name: str, stage: Stage, tmp_path: Path) -> None:
    mine = context(tmp_path, precision="fp32")
    assert held(mine, stage, None, noise=0.001)[0].verdict.held
    fault, gate = FAULTS[name]
    with pytest.raises(FidelityError, match=rf"{gate}(:| does not hold)"):
        held(mine, stage, fault, noise=0.001)
    with pytest.raises(FidelityError, match="logit_shift: "):
        held(mine, stage, None)  # what int8 may


def test_what_fp32_answers_must_be_finite_too(stage: Stage, tmp_path: Path) -> None:
    spoilt = actors(stage.world, fault=on("vision", "fpn_0", _nan_for_black))
    with pytest.raises(FidelityError, match=r"gate finite.*fpn_0 of vision has NaN"):
        proven(context(tmp_path), stage.gallery(), spoilt, actors(stage.world))


def test_more_pictures_are_taken_until_the_gates_can_tell(stage: Stage, tmp_path: Path) -> None:
    gallery = stage.gallery(first=2)
    verified, _ = held(context(tmp_path), stage, None, gallery=gallery)
    # Two pictures are no evidence, four are none; eight hold 60 objects and more.
    assert verified.verdict.evidence.images == 8


def test_too_few_pictures_are_refused_with_the_number_that_would_do(
    stage: Stage, tmp_path: Path
) -> None:
    gallery = stage.gallery(first=2, most=3)
    with pytest.raises(FidelityError, match=r"too little to tell\. Weak evidence") as caught:
        held(context(tmp_path), stage, None, gallery=gallery)
    assert "3 pictures, at least 8 are needed" in str(caught.value)
    assert re.search(r"About \d+ pictures like these would be enough", str(caught.value))
    assert "--weak-evidence publishes all the same" in str(caught.value)


def test_weak_evidence_is_published_where_a_recipe_asks_for_it(
    stage: Stage, tmp_path: Path
) -> None:
    mine = context(tmp_path, gates=Gates(weak_evidence=True))
    gallery = stage.gallery(first=2, most=3)
    verified, (note,) = held(mine, stage, None, gallery=gallery)
    assert not verified.verdict.held
    assert note.startswith("Weak evidence (3 pictures, ")
    with pytest.raises(FidelityError, match="box_iou: "):
        held(mine, stage, FAULTS["all boxes zero"][0], gallery=gallery)


def test_fp32_without_pictures_is_published_on_weak_evidence(stage: Stage, tmp_path: Path) -> None:
    gallery = stage.gallery(first=2, most=3)
    mine = context(tmp_path, precision="fp32")
    _, (note,) = held(mine, stage, None, noise=0.001, gallery=gallery)
    assert note.startswith("Weak evidence (3 pictures, ")
    with pytest.raises(FidelityError, match="box_iou: "):
        held(mine, stage, FAULTS["all boxes zero"][0], noise=0.001, gallery=gallery)


def test_a_loss_that_the_first_pictures_do_not_hold_is_found(stage: Stage, tmp_path: Path) -> None:
    """The figure holds on the first pictures, and its worse end does not: more are asked."""
    seen = []

    def some(start: int, count: int) -> tuple[LabelledImage, ...]:
        seen.append((start, count))
        return stage.scenes[start : start + count]

    gallery = replace(stage.gallery(), some=some)
    bad = {one.name for one in stage.scenes[5:6]} | {one.name for one in stage.scenes[FIRST:]}

    def change(array: Any, what: str) -> Any:
        return -np.abs(array) if what in bad else array

    fault = on("detector", "presence_logit", change)
    once = replace(gallery, most=FIRST)
    opened, _ = held(context(tmp_path, gates=Gates(**OPEN)), stage, fault, gallery=once)
    found = next(one.interval for one in opened.verdict.judged if one.gate == "cgf1_alike")
    assert found.low < found.value < 1.0
    gates = Gates(**OPEN | {"cgf1_alike": (found.low + found.value) / 2})
    with pytest.raises(FidelityError, match=r"too little to tell.*cgf1_alike: "):
        held(context(tmp_path, gates=gates), stage, fault, gallery=once)
    seen.clear()
    with pytest.raises(FidelityError, match=r"does not hold its gates.*cgf1_alike: "):
        held(context(tmp_path, gates=gates), stage, fault, gallery=gallery)
    assert seen == [(0, FIRST), (0, FIRST), (FIRST, FIRST), (FIRST, FIRST)]


OPEN: dict[str, Any] = {
    **dict.fromkeys(
        ("mask_iou", "agreement", "box_iou", "cgf1_alike", "feature_cosine", "odd_cosine"), 0.0
    ),
    **dict.fromkeys(("score_shift", "absent_score_shift", "cgf1_drop"), 1.0),
    **dict.fromkeys(("logit_shift", "presence_shift", "odd_logit_shift", "channel_gain"), 99.0),
}


def test_one_phrase_is_no_evidence_of_presence(stage: Stage, tmp_path: Path) -> None:
    """16 pictures and the one phrase that is in all of them say nothing of what is made up."""
    scenes = tuple(
        replace(one, questions=(Question(text="object", masks=one.questions[0].masks[:0]),))
        for one in stage.scenes
    )
    gallery = replace(stage.gallery(), some=lambda a, n: scenes[a : a + n], most=FIRST)
    with pytest.raises(FidelityError, match=r"0 phrases that are not there, at least 8") as caught:
        held(context(tmp_path, model="checkpoint"), stage, None, gallery=gallery)
    assert "8 phrases that are absent" in str(caught.value)
