"""cgF1, the metric of SAM 3: how well objects are masked, times how well presence is told.

Defined in the SAM 3 paper (https://arxiv.org/abs/2511.16719, section 3) and computed as its
evaluator does (``sam3/eval/cgf1_eval.py`` of facebookresearch/sam3), but without the small numbers
that it adds to denominators: perfect answers score exactly 1, and other figures differ from the
evaluator's by at most 2e-4. Figures here are fractions; the paper multiplies by 100.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from samforge.core.errors import SettingError

THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))
"""IoU from which a pair of masks counts: 0.50, 0.55 to 0.95. The metric averages over them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairOutcome:
    """What was found of one image-phrase pair."""

    true_positives: tuple[int, ...]
    """Matched masks at each of ``THRESHOLDS``."""
    predicted: int
    """Masks found."""
    true: int
    """Masks that are there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CgF1:
    """The metric and the two factors it is made of."""

    cgf1: float
    """``pmf1 * il_mcc``, -1 to 1; negative when presence is told worse than by chance."""
    pmf1: float
    """Positive micro F1, 0 to 1: masks of the pairs that have any, averaged over the thresholds;
    0 when no pair has one."""
    il_mcc: float
    """Image-level Matthews coefficient of presence, -1 to 1; 0 where it is not defined."""
    mcc_defined: bool
    """False when all pairs are present or all absent, or all answers alike: the coefficient is then
    0 / 0, which counts as 0, and ``cgf1`` says nothing of the masks."""
    pmf1_at: tuple[float, ...]
    """Positive micro F1 at each of ``THRESHOLDS``."""
    found_present: int
    """Pairs with something to find and something found."""
    found_absent: int
    """Pairs with nothing to find and something found."""
    missed_present: int
    """Pairs with something to find and nothing found."""
    missed_absent: int
    """Pairs with nothing to find and nothing found."""

    def to_dict(self) -> dict[str, object]:
        """The figures as plain JSON values."""
        return {**asdict(self), "pmf1_at": list(self.pmf1_at)}


def outcome_from_iou(iou: npt.NDArray[np.float64]) -> PairOutcome:
    """Match the masks of one pair once, and count the matches at every threshold.

    One assignment with the largest sum of IoU serves all thresholds, as in the evaluator: unlike
    ``accuracy.match_from_iou``, a pair below a threshold may take the place of one above it.

    Args:
        iou: (N, M), N masks scored 0.5 or more and M true ones, as ``accuracy.mask_iou`` gives it.
    """
    rows, columns = linear_sum_assignment(iou, maximize=True)
    matched = iou[rows, columns]
    return PairOutcome(
        true_positives=tuple(int((matched >= threshold).sum()) for threshold in THRESHOLDS),
        predicted=iou.shape[0],
        true=iou.shape[1],
    )


def cgf1_from_outcomes(outcomes: Iterable[PairOutcome]) -> CgF1:
    """Sum outcomes up.

    Masks found where nothing is do not count in ``pmf1``, only in ``il_mcc``; masks missed count in
    ``pmf1`` also where nothing at all was found.

    Args:
        outcomes: One an image-phrase pair.

    Raises:
        SettingError: There is no pair.
    """
    pairs = tuple(outcomes)
    if not pairs:
        raise SettingError("cgF1 needs at least one image-phrase pair, got none.")
    positive = [pair for pair in pairs if pair.true]
    hits = np.array([pair.true_positives for pair in positive]).reshape(-1, len(THRESHOLDS)).sum(0)
    # 2 TP + FP + FN, which is the same number at every threshold.
    masks = sum(pair.predicted + pair.true for pair in positive)
    f1 = tuple(2 * int(hit) / masks if masks else 0.0 for hit in hits)
    found_present = sum(pair.predicted > 0 for pair in positive)
    found_absent = sum(pair.predicted > 0 for pair in pairs) - found_present
    missed_present = len(positive) - found_present
    missed_absent = len(pairs) - len(positive) - found_absent
    mcc = matthews(found_present, found_absent, missed_present, missed_absent)
    pmf1 = math.fsum(f1) / len(f1)
    return CgF1(
        cgf1=pmf1 * (mcc or 0.0),
        pmf1=pmf1,
        il_mcc=mcc or 0.0,
        mcc_defined=mcc is not None,
        pmf1_at=f1,
        found_present=found_present,
        found_absent=found_absent,
        missed_present=missed_present,
        missed_absent=missed_absent,
    )


def matthews(
    true_positives: int, false_positives: int, false_negatives: int, true_negatives: int
) -> float | None:
    """Matthews correlation coefficient, -1 to 1; None where it is 0 / 0.

    https://en.wikipedia.org/wiki/Phi_coefficient
    """
    spread = (
        (true_positives + false_positives)
        * (true_positives + false_negatives)
        * (true_negatives + false_positives)
        * (true_negatives + false_negatives)
    )
    if not spread:
        return None
    agreement = true_positives * true_negatives - false_positives * false_negatives
    return agreement / math.sqrt(spread)
