"""The gates that predictions must hold before a bundle is published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from samforge.core.errors import FidelityError, SettingError

if TYPE_CHECKING:
    from samforge.core.recipe import Gates
    from samforge.measure.cgf1 import CgF1
    from samforge.measure.predictions import PredictionFidelity


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """One figure that a bundle has to reach, or must not exceed, against fp32."""

    words: str
    """What it limits."""
    at_least: bool
    """Whether the limit is to be reached; else it must not be exceeded."""
    exact: float
    """Limit of fp32."""
    half: float
    """Limit of fp16 and bf16."""
    eight: float
    """Limit of the others."""

    def of(self, precision: str) -> float:
        """The limit of a precision."""
        if precision == "fp32":
            return self.exact
        return self.half if precision in ("fp16", "bf16") else self.eight


def _at_least(words: str, exact: float, half: float, eight: float) -> Gate:
    return Gate(words=words, at_least=True, exact=exact, half=half, eight=eight)


def _at_most(words: str, exact: float, half: float, eight: float) -> Gate:
    return Gate(words=words, at_least=False, exact=exact, half=half, eight=eight)


GATES = {
    "mask_iou": _at_least("mean IoU of the masks that both find", 0.995, 0.995, 0.98),
    "agreement": _at_least("F1 of the objects", 0.95, 0.95, 0.95),
    "box_iou": _at_least("mean IoU of the boxes that both find", 0.995, 0.98, 0.96),
    "score_shift": _at_most("mean shift of the objects' scores", 0.002, 0.01, 0.03),
    "absent_score_shift": _at_most(
        "mean shift of the best score where the reference finds nothing", 0.002, 0.01, 0.03
    ),
    "logit_shift": _at_most("mean shift of the logits of all queries", 0.01, 0.1, 0.4),
    "presence_shift": _at_most("mean shift of the presence logit", 0.02, 0.2, 0.8),
    "cgf1_alike": _at_least("cgF1 with the reference's answers as the truth", 0.98, 0.97, 0.94),
    "cgf1_drop": _at_most("loss of cgF1 by labels", 0.01, 0.01, 0.01),
    "feature_cosine": _at_least("cosine of the features", 0.9999, 0.999, 0.98),
    "channel_gain": _at_most("factor by which a channel of the features changed", 1.01, 1.1, 1.5),
    "odd_logit_shift": _at_most(
        "mean shift of logits where there is nothing to find", 0.05, 0.5, 3.0
    ),
    "odd_cosine": _at_least(
        "cosine of features where there is nothing to find", 0.9999, 0.998, 0.97
    ),
    "click_iou": _at_least("mean IoU of the masks of the same clicks", 0.999, 0.995, 0.98),
    "track_iou": _at_least("smallest temporal IoU of a track", 0.999, 0.995, 0.98),
    "j_and_f_drop": _at_most("loss of J&F by labels", 0.01, 0.01, 0.01),
    "switch_rise": _at_most("rise of identity switches, as a share", 0.02, 0.02, 0.02),
}
"""Every gate on what the finished parts find or compute, with the limits of each precision."""


def limit_of(gate: str, precision: str, gates: Gates) -> float:
    """What a gate limits: the recipe's own limit, or else the precision's."""
    own: float | None = getattr(gates, gate)
    return GATES[gate].of(precision) if own is None else own


def mask_iou_limit(precision: str, gates: Gates) -> float:
    """What ``mask_iou`` must reach: the recipe's own limit, or else the precision's."""
    return limit_of("mask_iou", precision, gates)


def feature_cosine_limit(precision: str, gates: Gates) -> float:
    """What ``feature_cosine`` must reach: the recipe's own limit, or else the precision's."""
    return limit_of("feature_cosine", precision, gates)


def within(gate: str, value: float, limit: float) -> bool:
    """Whether a figure is on the right side of its limit; never for NaN."""
    return value >= limit if GATES[gate].at_least else value <= limit


def check_predictions(fidelity: PredictionFidelity, precision: str, gates: Gates) -> None:
    """Make sure that answers are close enough to the reference's.

    Args:
        fidelity: Measured against fp32.
        precision: Of what was measured: ``int8``.
        gates: The recipe's.

    Raises:
        SettingError: The reference found nothing, so that nothing can be proven.
        FidelityError: Masks, boxes or scores differ by more than the gate allows, or objects are
            lost or made up.
    """
    require_objects(fidelity, precision)
    limit = mask_iou_limit(precision, gates)
    objects = (
        f"{fidelity.objects} objects found, {fidelity.reference_objects} by the reference, "
        f"{fidelity.pairs} the same"
    )
    if fidelity.mask_iou is None or not fidelity.mask_iou >= limit:
        reached = (
            "not measurable, because no object is found by both"
            if fidelity.mask_iou is None
            else f"{fidelity.mask_iou:.4f}"
        )
        raise FidelityError(
            f"Masks of {precision} against the reference: mean IoU is {reached}, the gate is "
            f"{limit:g} ({objects})."
        )
    # The mean IoU of the masks that both find cannot see lost objects: the public SAM 3 engines
    # that lose a fifth of them would pass it.
    if fidelity.agreement is None or not fidelity.agreement >= gates.agreement:
        raise FidelityError(
            f"Objects of {precision} against the reference: F1 is {fidelity.agreement or 0:.4f}, "
            f"the gate is {gates.agreement:g} ({objects})."
        )
    # What users draw and filter by: a box of zeros goes with a perfect mask.
    for gate, figure in (
        ("box_iou", fidelity.box_iou),
        ("score_shift", fidelity.score_shift_mean),
        ("absent_score_shift", fidelity.absent_score_shift),
    ):
        limit = limit_of(gate, precision, gates)
        if figure is not None and not within(gate, figure, limit):
            raise FidelityError(
                f"{precision} against the reference: the {GATES[gate].words} is {figure:.4f}, the "
                f"gate {gate} is {limit:g} ({objects})."
            )


def require_objects(fidelity: PredictionFidelity, precision: str) -> None:
    """Make sure that there is something to compare.

    Raises:
        SettingError: The reference found nothing, so that nothing can be proven.
    """
    if not fidelity.reference_objects:
        raise SettingError(
            f"The reference finds nothing in any of {fidelity.questions} questions, so that "
            f"{precision} cannot be compared with it. Give images that hold what the prompts name."
        )


def check_cgf1(reference: CgF1, measured: CgF1, precision: str, gates: Gates) -> None:
    """Make sure that cgF1 on labelled images did not fall too far.

    Raises:
        SettingError: The labels leave the metric undefined, or the reference is no better than
            chance, so that nothing can be proven.
        FidelityError: It fell by more than the gate allows.
    """
    require_cgf1(reference)
    drop = reference.cgf1 - measured.cgf1
    if not drop <= gates.cgf1_drop:
        raise FidelityError(
            f"cgF1 of {precision} is {measured.cgf1:.4f}, the reference's {reference.cgf1:.4f}: "
            f"it fell by {drop:.4f}, the gate is {gates.cgf1_drop:g}."
        )


def require_cgf1(reference: CgF1) -> None:
    """Make sure that a loss of cgF1 would mean something.

    Raises:
        SettingError: The labels leave the metric undefined, or the reference is no better than
            chance, so that nothing can be proven.
    """
    if not reference.mcc_defined or reference.cgf1 <= 0:
        raise SettingError(
            f"cgF1 of the reference is {reference.cgf1:.4f}"
            f"{'' if reference.mcc_defined else ' (presence is undefined)'}: a drop from there "
            "proves nothing. Give labelled images with phrases that are present and phrases that "
            "are absent, of a model that finds them."
        )
