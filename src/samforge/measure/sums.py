"""Sums over each image that every gated figure follows from, so that images can be drawn again.

A figure alone does not say how much it would differ on other images. Drawing the images again with
replacement (Efron 1979, the bootstrap) does: a figure of 48 images with one loss in them comes out
without the loss in a third of the draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from samforge.core.errors import FidelityError
from samforge.measure.cgf1 import THRESHOLDS, PairOutcome
from samforge.measure.witness import Reading, Witness, saturated

if TYPE_CHECKING:
    from samforge.measure.predictions import AnswerFidelity
    from samforge.measure.segmentation import AccuracyTally

Floats: TypeAlias = npt.NDArray[np.float64]

DRAWS = 1000
"""Times that the images are drawn again."""
CONFIDENCE = 0.95
"""Share of the draws that lie in the interval: 2.5 % are worse than its worse end."""
SEED = 20261127
"""Of the draws: the same images give the same interval."""

_ANSWERS = (
    *("questions", "reference_objects", "objects", "pairs", "iou", "box_iou", "score_shift"),
    *("absent", "absent_score_shift", "made_up"),
)
_READINGS = ("prompts", "presence_shift", "logits", "logit_shift")
_OUTCOME = (*(f"hits_{index}" for index in range(len(THRESHOLDS))), "masks", "tp", "fp", "fn", "tn")
_TRUTHS = ("alike", "reference", "found")
"""cgF1 with fp32's answers as the truth; by labels that of the reference and of what was found."""
COLUMNS = (*_ANSWERS, *_READINGS, *(f"{truth}_{name}" for truth in _TRUTHS for name in _OUTCOME))
_PLACE = {name: index for index, name in enumerate(COLUMNS)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A figure, and where it would lie on other images of the kind."""

    value: float
    """On all images."""
    low: float
    """Lower end; NaN where no draw has the figure."""
    high: float
    """Upper end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """What the figures rest on."""

    images: int
    """Images looked at."""
    questions: int
    """Questions asked about them, by phrase and by box."""
    objects: int
    """Objects that fp32 finds."""
    present: int
    """Phrases that fp32 finds something for."""
    absent: int
    """Phrases that fp32 finds nothing for."""
    made_up: int
    """Questions to which fp32 finds nothing and something was found."""


def sums_from_tallies(
    reference: AccuracyTally,
    measured: AccuracyTally,
    witnesses: tuple[Witness, Witness] | None = None,
) -> Floats:
    """Sum both up, image by image.

    Args:
        reference: What fp32 answered.
        measured: What was answered to the same questions, compared with it.
        witnesses: What the parts of both gave meanwhile.

    Returns:
        (images, ``COLUMNS``).

    Raises:
        FidelityError: The two did not answer the same questions.
    """
    sums = np.zeros((measured.images, len(COLUMNS)))
    if len(reference.answered) != len(measured.answered):
        raise FidelityError(
            f"{len(measured.answered)} questions were answered, {len(reference.answered)} by the "
            "reference."
        )
    for wanted, found in zip(reference.answered, measured.answered, strict=True):
        if found.fidelity is None:
            raise FidelityError("An answer was compared with no reference.")
        _add(sums[found.image], "questions", _answer(found.fidelity))
        if found.by_phrase:
            outcomes = (found.fidelity.outcome, wanted.outcome, found.outcome)
            for truth, outcome in zip(_TRUTHS, outcomes, strict=True):
                if outcome is not None:
                    _add(sums[found.image], f"{truth}_hits_0", _counts(outcome))
    if witnesses is not None:
        for before, after in paired_readings(*witnesses):
            _add(sums[after.image], "prompts", _reading(before, after))
    return sums


def paired_readings(reference: Witness, measured: Witness) -> Iterator[tuple[Reading, Reading]]:
    """Both readings of every prompt.

    Raises:
        FidelityError: The two were not asked the same.
    """
    asked = [
        [(one.image, len(one.logits)) for one in each.readings] for each in (reference, measured)
    ]
    if asked[0] != asked[1]:
        raise FidelityError(
            f"The detector was run on {len(asked[1])} prompts, and on {len(asked[0])} others by "
            "the reference."
        )
    return zip(reference.readings, measured.readings, strict=True)


def figures_from_sums(sums: Floats) -> dict[str, Floats]:
    """Every gated figure, by the name of its gate; NaN where nothing defines it.

    Args:
        sums: (…, ``COLUMNS``), of all images or of many draws of them.
    """
    one = {name: sums[..., index] for name, index in _PLACE.items()}
    reference, found = _cgf1(sums, "reference"), _cgf1(sums, "found")
    return {
        "mask_iou": ratio(one["iou"], one["pairs"]),
        "agreement": ratio(2 * one["pairs"], one["reference_objects"] + one["objects"]),
        "box_iou": ratio(one["box_iou"], one["pairs"]),
        "score_shift": ratio(one["score_shift"], one["pairs"]),
        "absent_score_shift": ratio(one["absent_score_shift"], one["absent"]),
        "logit_shift": ratio(one["logit_shift"], one["logits"]),
        "presence_shift": ratio(one["presence_shift"], one["prompts"]),
        "cgf1_alike": _cgf1(sums, "alike"),
        "cgf1_drop": reference - found,
    }


def intervals_from_sums(sums: Floats) -> dict[str, Interval]:
    """Every figure with its interval.

    Args:
        sums: (images, ``COLUMNS``).
    """
    values, draws = figures_from_sums(sums.sum(0)), figures_from_sums(drawn_again(sums))
    return {name: interval_from_draws(value, draws[name]) for name, value in values.items()}


def drawn_again(sums: Floats) -> Floats:
    """Sums of images, or of videos, that are drawn again with replacement, (``DRAWS``, columns).

    Args:
        sums: (images, columns).
    """
    rng = np.random.default_rng(SEED)
    count = len(sums)
    drawn: Floats = rng.multinomial(count, np.full(count, 1 / count), size=DRAWS) @ sums
    return drawn


def interval_from_draws(value: Floats, draws: Floats) -> Interval:
    """The interval of a figure: ``value`` is of all images, ``draws`` are (``DRAWS``,)."""
    low, high = _ends(draws, (50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)))
    return Interval(value=float(value), low=low, high=high)


def evidence_from_sums(sums: Floats) -> Evidence:
    """Count what the figures rest on.

    Args:
        sums: (images, ``COLUMNS``).
    """
    one = dict(zip(COLUMNS, sums.sum(0).round().astype(int).tolist(), strict=True))
    return Evidence(
        images=len(sums),
        questions=one["questions"],
        objects=one["reference_objects"],
        present=one["alike_tp"] + one["alike_fn"],
        absent=one["alike_fp"] + one["alike_tn"],
        made_up=one["made_up"],
    )


def _add(row: Floats, first: str, values: Sequence[float]) -> None:
    start = _PLACE[first]
    row[start : start + len(values)] += values


def _answer(answer: AnswerFidelity) -> tuple[float, ...]:
    absent = answer.reference_objects == 0
    return (
        1,
        answer.reference_objects,
        answer.objects,
        len(answer.ious),
        sum(answer.ious),
        sum(answer.box_ious),
        sum(map(abs, answer.score_shifts)),
        absent,
        abs(answer.best_score_shift) if absent else 0.0,
        absent and answer.objects > 0,
    )


def _reading(wanted: Reading, found: Reading) -> tuple[float, ...]:
    presence = saturated(found.presence) - saturated(wanted.presence)
    shifts = np.abs(saturated(found.logits) - saturated(wanted.logits))
    return (1, float(np.abs(presence)), len(shifts), float(shifts.sum()))


def _counts(outcome: PairOutcome) -> tuple[int, ...]:
    """In the order of ``_OUTCOME``; masks count where there is something to find."""
    there, found = outcome.true > 0, outcome.predicted > 0
    hits = outcome.true_positives if there else (0,) * len(THRESHOLDS)
    masks = outcome.predicted + outcome.true if there else 0
    presence = (there and found, found and not there, there and not found, not (there or found))
    return (*hits, masks, *presence)


def _cgf1(sums: Floats, truth: str) -> Floats:
    """As ``cgf1.cgf1_from_outcomes``; NaN where presence leaves Matthews' coefficient undefined."""
    start = _PLACE[f"{truth}_hits_0"]
    hits = sums[..., start : start + len(THRESHOLDS)].mean(-1)
    masks, tp, fp, fn, tn = np.moveaxis(
        sums[..., start + len(THRESHOLDS) : start + len(_OUTCOME)], -1, 0
    )
    there, absent, said = tp + fn, tn + fp, (tp + fp) * (tn + fn)
    # Where all answers are alike and the truth is not, presence is told by chance: 0.
    mcc = np.where(said > 0, ratio(tp * tn - fp * fn, np.sqrt(said * there * absent)), 0.0)
    return ratio(2 * hits, masks) * np.where(there * absent > 0, mcc, np.nan)


def ratio(part: Floats, whole: Floats) -> Floats:
    """One over the other; NaN where the whole is 0."""
    share: Floats = np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)
    return share


def _ends(draws: Floats, percent: tuple[float, float]) -> tuple[float, float]:
    defined = draws[~np.isnan(draws)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.percentile(defined, percent)
    return float(low), float(high)
