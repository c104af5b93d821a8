"""cgF1 against numbers worked out by hand, and against what must hold for any answers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from samforge.core.errors import SettingError
from samforge.measure.cgf1 import (
    THRESHOLDS,
    CgF1,
    PairOutcome,
    cgf1_from_outcomes,
    matthews,
    outcome_from_iou,
)

Iou = npt.NDArray[np.float64]

RIGHT = np.eye(2)
"""Two objects, both masked exactly."""
NOTHING = np.zeros((0, 0))
"""Nothing there, nothing found."""


def measured(*pairs: Iou) -> CgF1:
    return cgf1_from_outcomes(outcome_from_iou(iou) for iou in pairs)


def test_the_thresholds_are_those_of_the_paper() -> None:
    assert THRESHOLDS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


def test_one_pair_by_hand() -> None:
    # IoU 0.92 counts up to 0.90: nine thresholds; 0.70 up to 0.70: five; the third has no pair.
    outcome = outcome_from_iou(np.array([[0.92, 0.0], [0.1, 0.7], [0.2, 0.3]]))
    assert outcome.true_positives == (2, 2, 2, 2, 2, 1, 1, 1, 1, 0)
    assert (outcome.predicted, outcome.true) == (3, 2)


def test_an_iou_equal_to_a_threshold_counts() -> None:
    assert outcome_from_iou(np.array([[3 / 5]])).true_positives[:4] == (1, 1, 1, 0)
    assert outcome_from_iou(np.array([[19 / 20]])).true_positives == (1,) * 10


def test_masks_are_matched_once_for_all_thresholds() -> None:
    # Straight 0.9 + 0.1 = 1.0, crosswise 0.55 + 0.5 = 1.05: the larger sum takes it, although no
    # pair of it reaches 0.6.
    outcome = outcome_from_iou(np.array([[0.9, 0.55], [0.5, 0.1]]))
    assert outcome.true_positives == (2, 1, 0, 0, 0, 0, 0, 0, 0, 0)


def test_a_small_set_by_hand() -> None:
    figures = measured(
        np.array([[0.92, 0.0], [0.1, 0.7], [0.2, 0.3]]),  # present: two found, one made up
        np.zeros((0, 1)),  # present: missed
        np.array([[1.0]]),  # present: exact
        np.zeros((2, 0)),  # absent: two made up, which only presence counts
        NOTHING,  # absent: rightly nothing
        NOTHING,
    )
    # Masks of the present pairs: 3 + 2 and 0 + 1 and 1 + 1 make 8.
    by_hand = [2 * (hits + 1) / 8 for hits in (2, 2, 2, 2, 2, 1, 1, 1, 1, 0)]
    assert figures.pmf1_at == pytest.approx(by_hand)
    assert figures.pmf1 == pytest.approx(0.6)
    counts = (
        figures.found_present,
        figures.found_absent,
        figures.missed_present,
        figures.missed_absent,
    )
    assert counts == (2, 1, 1, 2)
    assert figures.il_mcc == pytest.approx(3 / 9), "2 * 2 - 1 * 1 over the root of 3 to the 4th"
    assert figures.cgf1 == pytest.approx(0.2)
    assert figures.mcc_defined


def test_perfect_answers_score_1() -> None:
    figures = measured(RIGHT, NOTHING, RIGHT, NOTHING)
    assert (figures.cgf1, figures.pmf1, figures.il_mcc) == (1.0, 1.0, 1.0)


def test_presence_told_the_wrong_way_round_scores_0_with_a_coefficient_of_minus_1() -> None:
    figures = measured(np.zeros((0, 2)), np.ones((1, 0)))
    assert (figures.cgf1, figures.pmf1, figures.il_mcc) == (0.0, 0.0, -1.0)


def test_exact_masks_are_worth_nothing_when_everything_is_said_to_be_there() -> None:
    figures = measured(RIGHT, np.zeros((1, 0)), RIGHT, np.zeros((3, 0)))
    assert (figures.pmf1, figures.il_mcc, figures.cgf1) == (1.0, 0.0, 0.0)
    assert not figures.mcc_defined


@pytest.mark.parametrize(
    "pairs",
    [(RIGHT, RIGHT), (NOTHING, NOTHING), (np.zeros((0, 1)), np.zeros((0, 2)))],
    ids=["all present", "all absent", "all missed"],
)
def test_presence_of_one_kind_leaves_the_metric_undefined(pairs: tuple[Iou, ...]) -> None:
    figures = measured(*pairs)
    assert (figures.il_mcc, figures.cgf1, figures.mcc_defined) == (0.0, 0.0, False)


def test_made_up_masks_of_an_absent_phrase_leave_pmf1_alone_and_missed_ones_do_not() -> None:
    few = measured(RIGHT, np.zeros((1, 0)), NOTHING)
    many = measured(RIGHT, np.zeros((50, 0)), NOTHING)
    assert few == many
    missed = measured(RIGHT, np.zeros((0, 2)), NOTHING)
    assert missed.pmf1 == pytest.approx(2 * 2 / 6)


def test_better_than_chance_or_worse() -> None:
    assert matthews(1, 1, 1, 1) == 0.0
    assert matthews(6, 1, 2, 3) == pytest.approx(16 / np.sqrt(7 * 8 * 4 * 5))
    assert matthews(0, 3, 4, 0) == -1.0
    assert matthews(5, 0, 0, 0) is None


def test_no_pair_is_refused() -> None:
    with pytest.raises(SettingError, match="at least one image-phrase pair, got none"):
        cgf1_from_outcomes([])


def ious(min_side: int = 0) -> st.SearchStrategy[Iou]:
    side = st.integers(min_side, 4)
    return st.tuples(side, side).flatmap(
        lambda shape: arrays.arrays(
            np.float64, shape, elements=st.floats(0, 1, allow_nan=False, width=16)
        )
    )


@given(st.lists(ious(), min_size=1, max_size=8))
def test_figures_stay_within_their_bounds(pairs: list[Iou]) -> None:
    figures = measured(*pairs)
    assert 0 <= figures.pmf1 <= 1
    assert -1 <= figures.il_mcc <= 1
    assert abs(figures.cgf1) <= figures.pmf1
    assert sorted(figures.pmf1_at, reverse=True) == list(figures.pmf1_at)
    assert figures.mcc_defined or figures.il_mcc == 0


@given(st.lists(ious(), min_size=1, max_size=6))
def test_the_order_of_pairs_does_not_matter(pairs: list[Iou]) -> None:
    assert measured(*reversed(pairs)) == measured(*pairs)


@given(st.lists(ious(min_side=1), min_size=1, max_size=6))
def test_model_and_labels_can_be_swapped_where_both_have_masks(pairs: list[Iou]) -> None:
    def swapped(iou: Iou) -> PairOutcome:
        outcome = outcome_from_iou(iou)
        return PairOutcome(
            true_positives=outcome.true_positives, predicted=outcome.true, true=outcome.predicted
        )

    assert cgf1_from_outcomes(map(swapped, pairs)) == measured(*pairs)


@given(*[st.integers(0, 20)] * 4)
def test_the_coefficient_is_the_correlation_of_two_series(
    hit: int, up: int, miss: int, no: int
) -> None:
    truth = [1] * hit + [0] * up + [1] * miss + [0] * no
    answer = [1] * hit + [1] * up + [0] * miss + [0] * no
    coefficient = matthews(hit, up, miss, no)
    if coefficient is None:
        assert len(set(truth)) < 2 or len(set(answer)) < 2
    else:
        assert coefficient == pytest.approx(np.corrcoef(truth, answer)[0, 1])
