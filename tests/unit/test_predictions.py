"""Fidelity of answers against numbers worked out by hand, and the gates on them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from samforge.core.detections import Detections
from samforge.core.errors import FidelityError, SettingError, ShapeError
from samforge.core.labelled import LabelledImage, Question
from samforge.core.recipe import Gates
from samforge.measure.answers import detections_from_table, table_from_detections
from samforge.measure.cgf1 import cgf1_from_outcomes, outcome_from_iou
from samforge.measure.gates import check_cgf1, check_predictions, mask_iou_limit
from samforge.measure.predictions import (
    PredictionFidelity,
    compare_detections,
    compare_predictions,
    fidelity_from_answers,
    in_reference_order,
)

Span = tuple[int, int, float]


def bars(*spans: Span, best: float | None = None, label: str = "bar") -> Detections:
    """Detections on one row of ten pixels: start, stop and score of each."""
    masks = np.zeros((len(spans), 1, 10), np.bool_)
    for mask, (start, stop, _) in zip(masks, spans, strict=True):
        mask[0, start:stop] = True
    return Detections(
        masks=masks,
        boxes_xyxy=np.array([[a, 0, b, 1] for a, b, _ in spans], np.float32).reshape(-1, 4),
        scores=np.array([score for *_, score in spans], np.float32),
        labels=(label,) * len(spans),
        size_hw=(1, 10),
        best_scores={} if best is None else {label: best},
    )


ANSWERS = (
    # Both find two: IoU 1 and 3/4, scores down by 0.1 and up by 0.05.
    (
        bars((0, 4, 0.9), (4, 8, 0.8), best=0.9),
        bars((4, 7, 0.85), (0, 4, 0.8), best=0.85),
    ),
    # One is lost, and what is found instead overlaps it by 2/6 only.
    (bars((0, 4, 0.7), best=0.7), bars((2, 6, 0.6), best=0.6)),
    # Nothing any more, though nearly.
    (bars((0, 4, 0.55), best=0.55), bars(best=0.45)),
    # Rightly nothing, twice.
    (bars(best=0.1), bars(best=0.3)),
)


def test_one_answer_by_hand() -> None:
    answer = compare_detections(*ANSWERS[0])
    assert answer.ious == pytest.approx((1.0, 0.75))
    assert answer.score_shifts == pytest.approx((-0.1, 0.05))
    assert answer.best_score_shift == pytest.approx(-0.05)
    assert answer.same_objects


def test_a_set_by_hand() -> None:
    figures = fidelity_from_answers(compare_detections(*pair) for pair in ANSWERS)
    assert figures.to_dict() == {
        "questions": 4,
        "reference_objects": 4,
        "objects": 3,
        "pairs": 2,
        "mask_iou": pytest.approx(1.75 / 2),
        "mask_iou_min": pytest.approx(0.75),
        "box_iou": pytest.approx(1.75 / 2),
        "mask_iou_all": pytest.approx(1.75 / (2 + 2 + 1)),
        "agreement": pytest.approx(4 / 7),
        "score_shift_mean": pytest.approx(0.075),
        "score_shift_max": pytest.approx(0.1),
        "best_score_shift_mean": pytest.approx((0.05 + 0.1 + 0.1 + 0.2) / 4),
        "best_score_shift_max": pytest.approx(0.2),
        "absent_score_shift": pytest.approx(0.2),
        "made_up": 0,
        "presence_agreement": 0.75,
        "same_objects": 0.5,
    }


def test_nothing_found_by_either_has_no_mask_iou() -> None:
    figures = fidelity_from_answers([compare_detections(bars(best=0.2), bars(best=0.2))])
    assert (figures.mask_iou, figures.mask_iou_all, figures.agreement) == (None, None, None)
    assert (figures.presence_agreement, figures.same_objects) == (1.0, 1.0)


def test_two_copies_of_one_object_are_not_the_same_objects() -> None:
    answer = compare_detections(bars((0, 4, 0.9)), bars((0, 4, 0.9), (0, 4, 0.8)))
    assert answer.ious == (1.0,)
    assert not answer.same_objects


def test_the_best_admitted_score_counts_where_no_other_is_known() -> None:
    answer = compare_detections(bars((0, 4, 0.75)), bars((0, 4, 0.5)))
    assert answer.best_score_shift == -0.25


def test_detections_take_the_order_of_the_reference() -> None:
    reference = bars((0, 4, 0.9), (4, 8, 0.8))
    found = bars((8, 10, 0.95), (4, 8, 0.9), (0, 3, 0.7))
    ordered = in_reference_order(reference, found)
    assert ordered.boxes_xyxy[:, 0].tolist() == [0, 4, 8]
    assert ordered.scores.tolist() == pytest.approx([0.7, 0.9, 0.95])
    assert len(in_reference_order(reference, bars())) == 0


def test_images_of_two_sizes_and_no_question_are_refused() -> None:
    with pytest.raises(ShapeError, match="of one size"):
        compare_detections(bars(), Detections.empty((2, 10)))
    with pytest.raises(SettingError, match="at least one question, got none"):
        fidelity_from_answers([])


class _Scripted:
    """A segmenter that knows its answers by phrase, or by the first box's left edge."""

    def __init__(self, answers: dict[str | float, Detections]) -> None:
        self.answers = answers
        self.encoded = 0

    def encode(self, image: Any, **_: Any) -> Any:
        self.encoded += 1
        return image

    def predict(self, _: Any, *, text: Any, boxes_xyxy: Any = None, **__: Any) -> Detections:
        if boxes_xyxy is not None:
            return self.answers[float(boxes_xyxy[0, 0])]
        return Detections.concatenate([self.answers[phrase] for phrase in text])


def _images(count: int) -> Iterator[LabelledImage]:
    nothing = np.zeros((0, 1, 10), np.bool_)
    box = np.array([[3, 0, 5, 1]], np.float32)
    for index in range(count):
        yield LabelledImage(
            name=f"image {index}",
            image_rgb=np.zeros((1, 10, 3), np.uint8),
            questions=(
                Question(text="one", masks=nothing),
                Question(text=None, boxes_xyxy=box, box_labels=np.ones(1, np.int64), masks=nothing),
                Question(text="two", masks=nothing),
            ),
        )


def test_two_segmenters_are_asked_the_same_and_encode_each_image_once() -> None:
    wanted: dict[str | float, Detections] = {
        "one": bars((0, 4, 0.9), label="one", best=0.9),
        "two": bars(label="two", best=0.2),
        3.0: bars((0, 8, 0.6), (8, 10, 0.6)),
    }
    found = {**wanted, "two": bars((0, 1, 0.6), label="two", best=0.6), 3.0: bars((0, 6, 0.6))}
    first, second, done = _Scripted(wanted), _Scripted(found), list[None]()
    figures = compare_predictions(
        first,  # type: ignore[arg-type]
        second,  # type: ignore[arg-type]
        _images(5),
        done=lambda: done.append(None),
    )
    assert (first.encoded, second.encoded, len(done)) == (5, 5, 5)
    assert (figures.questions, figures.reference_objects, figures.objects) == (15, 15, 15)
    assert figures.mask_iou == pytest.approx((1 + 0.75) / 2)
    assert figures.presence_agreement == pytest.approx(2 / 3)
    assert figures.same_objects == pytest.approx(1 / 3)
    # A phrase's best score is its own: "one" has 0.9 in both.
    assert figures.best_score_shift_max == pytest.approx(0.4)
    by_text = compare_predictions(
        first,  # type: ignore[arg-type]
        second,  # type: ignore[arg-type]
        _images(1),
        boxes=False,
    )
    assert by_text.questions == 2


@given(arrays.arrays(np.bool_, st.tuples(*[st.integers(1, 4)] * 3)), st.data())
def test_detections_come_back_whole_from_a_table(masks: np.ndarray, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(masks)))
    detections = Detections(
        masks=masks[:count],
        boxes_xyxy=np.arange(4 * count, dtype=np.float32).reshape(-1, 4) / 3,
        scores=np.linspace(0, 1, count, dtype=np.float32),
        labels=tuple("abcd"[:count]),
        size_hw=masks.shape[1:],
        best_scores={"a": 0.25},
        cut_off=3,
    )
    back = detections_from_table(json.loads(json.dumps(table_from_detections(detections))))
    for name in ("masks", "boxes_xyxy", "scores"):
        assert np.array_equal(getattr(back, name), getattr(detections, name))
    assert (back.labels, back.size_hw) == (detections.labels, detections.size_hw)
    assert (back.best_scores, back.cut_off) == ({"a": 0.25}, 3)


def _fidelity(answers: Sequence[tuple[Detections, Detections]]) -> PredictionFidelity:
    return fidelity_from_answers(compare_detections(*pair) for pair in answers)


def test_limits_follow_the_precision_unless_the_recipe_has_its_own() -> None:
    limits = {name: mask_iou_limit(name, Gates()) for name in ("fp16", "bf16", "int8", "fp8")}
    assert limits == {"fp16": 0.995, "bf16": 0.995, "int8": 0.98, "fp8": 0.98}
    assert mask_iou_limit("int8-weights", Gates()) == 0.98
    assert mask_iou_limit("fp16", Gates(mask_iou=0.9)) == 0.9


def test_masks_that_differ_fail_the_gate_of_their_precision() -> None:
    # One in a hundred pixels of each mask is lost: IoU 0.99.
    masks = np.ones((1, 10, 10), np.bool_)
    whole = Detections(
        masks=masks,
        boxes_xyxy=np.zeros((1, 4), np.float32),
        scores=np.ones(1, np.float32),
        labels=("a",),
        size_hw=(10, 10),
    )
    lesser = masks.copy()
    lesser[0, 0, 0] = False
    figures = _fidelity([(whole, replace(whole, masks=lesser))])
    assert figures.mask_iou == pytest.approx(0.99)
    check_predictions(figures, "int8", Gates())
    with pytest.raises(
        FidelityError,
        match=r"Masks of fp16 against the reference: mean IoU is 0\.9900, the gate is 0\.995 "
        r"\(1 objects found, 1 by the reference, 1 the same\)",
    ):
        check_predictions(figures, "fp16", Gates())
    with pytest.raises(FidelityError, match=r"the gate is 1 "):
        check_predictions(figures, "int8", Gates(mask_iou=1.0))


def test_lost_objects_fail_although_all_masks_that_are_left_are_exact() -> None:
    both, lost = bars((0, 4, 0.9)), (bars((0, 4, 0.9)), bars())
    figures = _fidelity([(both, both)] * 80 + [lost] * 20)
    assert figures.mask_iou == 1.0
    with pytest.raises(FidelityError, match=r"Objects of int8 .* F1 is 0\.8889, the gate is 0\.95"):
        check_predictions(figures, "int8", Gates())
    everything = _fidelity([lost])
    with pytest.raises(FidelityError, match="mean IoU is not measurable, because no object"):
        check_predictions(everything, "int8", Gates())


def test_a_reference_that_finds_nothing_proves_nothing() -> None:
    with pytest.raises(SettingError, match="finds nothing in any of 1 questions"):
        check_predictions(_fidelity([(bars(), bars())]), "int8", Gates())


def test_the_drop_of_cgf1_is_gated() -> None:
    right, miss, nothing = np.eye(1), np.zeros((0, 1)), np.zeros((0, 0))
    pairs = [outcome_from_iou(iou) for iou in [right] * 100 + [nothing] * 100]
    reference = cgf1_from_outcomes(pairs)
    same = cgf1_from_outcomes(pairs)
    worse = cgf1_from_outcomes([outcome_from_iou(miss), *pairs[1:]])
    check_cgf1(reference, same, "int8", Gates())
    check_cgf1(reference, worse, "int8", Gates(cgf1_drop=0.02))
    with pytest.raises(FidelityError, match=r"cgF1 of int8 is 0\.98.*fell by 0\.01.*gate is 0\.01"):
        check_cgf1(reference, worse, "int8", Gates())
    check_cgf1(worse, reference, "int8", Gates(cgf1_drop=0.0))
    present = cgf1_from_outcomes(pairs[:100])
    with pytest.raises(SettingError, match=r"0\.0000 \(presence is undefined\).*proves nothing"):
        check_cgf1(present, present, "int8", Gates())
