"""Accuracy figures against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from samforge.core.detections import Detections
from samforge.core.errors import SettingError, ShapeError
from samforge.measure.accuracy import Masks, accuracy_from_matches, evaluate, mask_iou, match_masks


def bars(*spans: tuple[int, int]) -> Masks:
    """(N, 1, 10): one row of ten pixels each, set from start to stop."""
    masks = np.zeros((len(spans), 1, 10), np.bool_)
    for mask, (start, stop) in zip(masks, spans, strict=True):
        mask[0, start:stop] = True
    return masks


def test_iou_of_every_pair() -> None:
    iou = mask_iou(bars((0, 4), (4, 8), (0, 0)), bars((0, 4), (2, 6)))
    assert iou == pytest.approx(np.array([[1.0, 2 / 6], [0.0, 2 / 6], [0.0, 0.0]]))


def test_masks_of_two_sizes_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"got \(1, 1, 10\) and \(1, 2, 10\)"):
        mask_iou(bars((0, 1)), np.zeros((1, 2, 10), np.bool_))


def test_pairs_are_counted_from_the_threshold_on() -> None:
    # IoU 1, 3/5 and 1/7; the last pair is one false positive and one miss.
    predicted, true = bars((0, 2), (2, 6), (6, 10)), bars((0, 2), (3, 7), (9, 10))
    match = match_masks(predicted, true)
    assert (match.true_positives, match.false_positives, match.false_negatives) == (2, 1, 1)
    assert match.iou_sum == pytest.approx(1.6)
    strict = match_masks(predicted, true, iou_threshold=0.6 + 1e-9)
    assert (strict.true_positives, strict.false_positives, strict.false_negatives) == (1, 2, 2)


def test_a_double_detection_is_a_false_positive() -> None:
    match = match_masks(bars((0, 4), (0, 4)), bars((0, 4)))
    assert (match.true_positives, match.false_positives, match.false_negatives) == (1, 1, 0)


def test_pairs_below_the_threshold_do_not_push_out_one_that_counts() -> None:
    # Straight: 4/7 + 0. Crosswise: 1/3 + 2/5, a larger sum in which no pair counts.
    match = match_masks(bars((0, 5), (2, 4)), bars((1, 7), (0, 2)), iou_threshold=0.5)
    assert mask_iou(bars((0, 5), (2, 4)), bars((1, 7), (0, 2))) == pytest.approx(
        np.array([[4 / 7, 2 / 5], [2 / 6, 0.0]])
    )
    assert match.true_positives == 1
    assert match.iou_sum == pytest.approx(4 / 7)


@pytest.mark.parametrize(
    ("predicted", "true", "counts"),
    [((), (), (0, 0, 0)), (((0, 3),), (), (0, 1, 0)), ((), ((0, 3),), (0, 0, 1))],
)
def test_empty_sides(
    predicted: tuple[tuple[int, int], ...],
    true: tuple[tuple[int, int], ...],
    counts: tuple[int, int, int],
) -> None:
    match = match_masks(bars(*predicted), bars(*true))
    assert (match.true_positives, match.false_positives, match.false_negatives) == counts
    assert (match.found, match.present) == (bool(predicted), bool(true))


def test_micro_f1_mean_iou_and_presence_over_prompts() -> None:
    accuracy = accuracy_from_matches(
        [
            match_masks(bars((0, 2), (2, 6)), bars((0, 2), (3, 7))),  # two pairs, 1 and 3/5
            match_masks(bars((0, 2)), bars()),  # something where nothing is
            match_masks(bars(), bars((0, 2), (4, 5))),  # nothing where two are
            match_masks(bars(), bars()),  # rightly nothing
        ]
    )
    assert accuracy.to_dict() == {
        "f1": pytest.approx(4 / 7),
        "mean_iou": pytest.approx(0.8),
        "presence": 0.5,
        "true_positives": 2,
        "false_positives": 1,
        "false_negatives": 2,
        "prompts": 4,
        "iou_threshold": 0.5,
    }


def test_all_rightly_empty_is_perfect() -> None:
    accuracy = accuracy_from_matches([match_masks(bars(), bars())])
    assert (accuracy.f1, accuracy.mean_iou, accuracy.presence) == (1.0, 0.0, 1.0)


def test_no_prompt_and_bad_thresholds_are_refused() -> None:
    with pytest.raises(SettingError, match="at least one prompt"):
        accuracy_from_matches([])
    with pytest.raises(SettingError, match="above 0 and at most 1, got 0"):
        match_masks(bars(), bars(), iou_threshold=0)


def test_evaluate_asks_the_predictor_for_every_item() -> None:
    asked = []

    def predict(image: str, prompt: str) -> Detections:
        asked.append((image, prompt))
        masks = bars((0, 4)) if prompt == "bar" else bars()
        return Detections(
            masks=masks,
            boxes_xyxy=np.zeros((len(masks), 4), np.float32),
            scores=np.ones(len(masks), np.float32),
            labels=(prompt,) * len(masks),
            size_hw=(1, 10),
        )

    items = [("a", "bar", bars((0, 4))), ("a", "dot", bars((9, 10))), ("b", "dot", bars())]
    accuracy = evaluate(predict, items)
    assert asked == [("a", "bar"), ("a", "dot"), ("b", "dot")]
    assert (accuracy.true_positives, accuracy.false_negatives) == (1, 1)
    assert accuracy.presence == pytest.approx(2 / 3)
