"""The gates that predictions must hold before a bundle of reduced precision is published."""

from __future__ import annotations

from typing import TYPE_CHECKING

from samforge.core.errors import FidelityError, SettingError

if TYPE_CHECKING:
    from samforge.core.recipe import Gates
    from samforge.measure.cgf1 import CgF1
    from samforge.measure.predictions import PredictionFidelity

MASK_IOU = {"fp32": 0.995, "fp16": 0.995, "bf16": 0.995}
"""Smallest mean IoU of the masks that a precision and fp32 both find."""

MASK_IOU_8_BIT = 0.98
"""The same for every other precision."""

FEATURE_COSINE = {"fp32": 0.9999, "fp16": 0.999, "bf16": 0.999}
"""Smallest cosine of a backbone's features with fp32's."""

FEATURE_COSINE_8_BIT = 0.98
"""The same for every other precision."""


def mask_iou_limit(precision: str, gates: Gates) -> float:
    """What ``mask_iou`` must reach: the recipe's own limit, or else the precision's."""
    if gates.mask_iou is not None:
        return gates.mask_iou
    return MASK_IOU.get(precision, MASK_IOU_8_BIT)


def feature_cosine_limit(precision: str, gates: Gates) -> float:
    """What ``feature_cosine`` must reach: the recipe's own limit, or else the precision's."""
    if gates.feature_cosine is not None:
        return gates.feature_cosine
    return FEATURE_COSINE.get(precision, FEATURE_COSINE_8_BIT)


def check_predictions(fidelity: PredictionFidelity, precision: str, gates: Gates) -> None:
    """Make sure that answers are close enough to the reference's.

    Args:
        fidelity: Measured against fp32.
        precision: Of what was measured: ``int8``.
        gates: The recipe's.

    Raises:
        SettingError: The reference found nothing, so that nothing can be proven.
        FidelityError: The masks differ by more than the gate allows, or objects are lost or made
            up.
    """
    if not fidelity.reference_objects:
        raise SettingError(
            f"The reference finds nothing in any of {fidelity.questions} questions, so that "
            f"{precision} cannot be compared with it. Give images that hold what the prompts name."
        )
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


def check_cgf1(reference: CgF1, measured: CgF1, precision: str, gates: Gates) -> None:
    """Make sure that cgF1 on labelled images did not fall too far.

    Raises:
        SettingError: The labels leave the metric undefined, or the reference is no better than
            chance, so that nothing can be proven.
        FidelityError: It fell by more than the gate allows.
    """
    if not reference.mcc_defined or reference.cgf1 <= 0:
        raise SettingError(
            f"cgF1 of the reference is {reference.cgf1:.4f}"
            f"{'' if reference.mcc_defined else ' (presence is undefined)'}: a drop from there "
            "proves nothing. Give labelled images with phrases that are present and phrases that "
            "are absent, of a model that finds them."
        )
    drop = reference.cgf1 - measured.cgf1
    if not drop <= gates.cgf1_drop:
        raise FidelityError(
            f"cgF1 of {precision} is {measured.cgf1:.4f}, the reference's {reference.cgf1:.4f}: "
            f"it fell by {drop:.4f}, the gate is {gates.cgf1_drop:g}."
        )
