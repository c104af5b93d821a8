"""How right a model is on labelled scenes: matched masks, F1, mask IoU and presence."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from samforge.core.errors import SettingError, ShapeError
from samforge.core.masks import Masks, as_masks

if TYPE_CHECKING:
    from samforge.core.detections import Detections

Image = TypeVar("Image")
Prompt = TypeVar("Prompt")
AnyMasks: TypeAlias = Masks | npt.NDArray[np.bool_]
"""Masks, or bool (N, H, W)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Match:
    """Predicted masks of one prompt against the true ones."""

    true_positives: int
    """Pairs at or above the threshold."""
    false_positives: int
    """Predictions without a pair."""
    false_negatives: int
    """True masks without a pair."""
    iou_sum: float
    """Sum of the pairs' IoU."""
    present: bool
    """Whether there is anything to find."""
    found: bool
    """Whether anything was predicted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """Figures over many prompts."""

    f1: float
    """Micro F1 of masks at ``iou_threshold``; 1 if there was nothing to find and nothing found."""
    mean_iou: float
    """Mean IoU of the matched pairs; 0 when there is no pair."""
    presence: float
    """Share of prompts for which *something or nothing* was answered rightly."""
    true_positives: int
    """Matched pairs."""
    false_positives: int
    """Predictions without a pair."""
    false_negatives: int
    """True masks without a pair."""
    prompts: int
    """Prompts measured."""
    iou_threshold: float
    """IoU from which a pair counts."""

    def to_dict(self) -> dict[str, float | int]:
        """The figures as plain JSON values."""
        return asdict(self)


def mask_iou(predicted: AnyMasks, true: AnyMasks) -> npt.NDArray[np.float64]:
    """Overlap over union of every pair, counted where the crops of the two overlap.

    Args:
        predicted: N masks.
        true: M masks of the same image.

    Returns:
        (N, M); 0 where both masks are empty.

    Raises:
        ShapeError: The masks are not of one size.
    """
    if len(predicted.shape) != 3 or predicted.shape[1:] != true.shape[1:]:
        raise ShapeError(
            f"mask_iou wants (N, H, W) and (M, H, W) of one size, "
            f"got {predicted.shape} and {true.shape}."
        )
    return as_masks(predicted).iou(as_masks(true))


def match_masks(predicted: AnyMasks, true: AnyMasks, *, iou_threshold: float = 0.5) -> Match:
    """Pair predicted masks with true ones so that the sum of IoU over the pairs is largest.

    Args:
        predicted: N masks, those admitted of one prompt.
        true: M masks, what the prompt asks for.
        iou_threshold: IoU from which a pair counts.

    Raises:
        SettingError: The threshold is not above 0 and at most 1.
        ShapeError: The masks are not of one size.
    """
    return match_from_iou(mask_iou(predicted, true), iou_threshold=iou_threshold)


def match_from_iou(iou: npt.NDArray[np.float64], *, iou_threshold: float = 0.5) -> Match:
    """Pair predicted masks with true ones, from the IoU of every pair.

    Args:
        iou: (N, M), N predicted and M true masks, as ``mask_iou`` gives it.
        iou_threshold: IoU from which a pair counts.

    Raises:
        SettingError: The threshold is not above 0 and at most 1.
    """
    if not 0 < iou_threshold <= 1:
        raise SettingError(f"iou_threshold is above 0 and at most 1, got {iou_threshold}.")
    # Pairs below the threshold are worth nothing, so that they never push out one that counts.
    iou = np.where(iou >= iou_threshold, iou, 0.0)
    rows, columns = linear_sum_assignment(iou, maximize=True)
    pairs = iou[rows, columns]
    hits = int(np.count_nonzero(pairs))
    predicted, true = iou.shape
    return Match(
        true_positives=hits,
        false_positives=predicted - hits,
        false_negatives=true - hits,
        iou_sum=float(pairs.sum()),
        present=true > 0,
        found=predicted > 0,
    )


def accuracy_from_matches(matches: Iterable[Match], *, iou_threshold: float = 0.5) -> Accuracy:
    """Sum matches up.

    Args:
        matches: One a prompt, all at ``iou_threshold``.
        iou_threshold: Written into the result.

    Raises:
        SettingError: There is no match.
    """
    counted = tuple(matches)
    if not counted:
        raise SettingError("Accuracy needs at least one prompt, got none.")
    hits = sum(match.true_positives for match in counted)
    extra = sum(match.false_positives for match in counted)
    missed = sum(match.false_negatives for match in counted)
    everything = 2 * hits + extra + missed
    return Accuracy(
        f1=2 * hits / everything if everything else 1.0,
        mean_iou=sum(match.iou_sum for match in counted) / hits if hits else 0.0,
        presence=sum(match.present == match.found for match in counted) / len(counted),
        true_positives=hits,
        false_positives=extra,
        false_negatives=missed,
        prompts=len(counted),
        iou_threshold=iou_threshold,
    )


def evaluate(
    predict: Callable[[Image, Prompt], Detections],
    items: Iterable[tuple[Image, Prompt, AnyMasks]],
    *,
    iou_threshold: float = 0.5,
) -> Accuracy:
    """Measure a predictor on labelled prompts.

    Args:
        predict: From an image and a prompt to the admitted detections.
        items: Image, prompt, and the M true masks it asks for, M = 0 for an absent concept.
        iou_threshold: IoU from which a pair counts.

    Raises:
        SettingError: There is no item.
        ShapeError: Predicted and true masks are not of one size.
    """
    return accuracy_from_matches(
        (
            match_masks(predict(image, prompt).masks, true, iou_threshold=iou_threshold)
            for image, prompt, true in items
        ),
        iou_threshold=iou_threshold,
    )
