"""From a detector's raw output to detections, in numpy.

Equal to Meta's ``Sam3Processor`` (sam3/model/sam3_image_processor.py), or to
``post_process_instance_segmentation`` of transformers' ``Sam3ImageProcessor``
(transformers/models/sam3/image_processing_sam3.py, 5.23), but masks are resized only for the
queries that are admitted, and only around what they cover.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from samforge.core.boxes import clipped_boxes
from samforge.core.detections import Detections
from samforge.core.errors import FidelityError, SettingError, ShapeError
from samforge.core.masks import Masks
from samforge.core.reference import META, TRANSFORMERS
from samforge.core.runs import Crop
from samforge.runtime._resize import crop_above

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Thresholds:
    """What counts as found.

    Raises:
        SettingError: A threshold is outside 0 to 1, or fewer than one detection is to be kept.
    """

    score: float = 0.5
    """Detections above this score are admitted."""
    mask: float = 0.5
    """Pixels above this probability belong to the mask."""
    max_detections: int | None = None
    """How many are kept of one image, over all phrases: those with the best scores. None keeps all
    that score above the threshold; ``Detections.cut_off`` counts what is left out."""

    def __post_init__(self) -> None:
        for name, value in (("threshold", self.score), ("mask_threshold", self.mask)):
            number = isinstance(value, int | float | np.integer | np.floating)
            # Written so that NaN fails too.
            if not number or isinstance(value, bool) or not 0.0 <= value <= 1.0:
                raise SettingError(f"{name} is {value!r:.40}. Give a number from 0 to 1.")
        most = self.max_detections
        whole = isinstance(most, int | np.integer) and not isinstance(most, bool)
        if most is not None and not (whole and most >= 1):
            raise SettingError(
                f"max_detections is {most!r:.40}. Give a whole number from 1, or leave it out to "
                "keep all."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskLimit:
    """What the pixels of a mask exceed once the mask has been brought to the image's size."""

    value: float
    """A logit, or a probability; infinite where all or no pixels belong to the mask."""
    of_probabilities: bool
    """Whether the sigmoid comes before the resize, as in transformers, or never, as at Meta's."""


def mask_limit(probability: float, reference: str) -> MaskLimit:
    """Bring the threshold of masks to what is resized.

    Meta resizes logits, which are compared with ``log(p / (1 - p))``: between two cells the edge of
    a mask lies where their logits cross it. Probabilities saturate, and draw edges towards the
    middle between the cells.
    """
    if reference == TRANSFORMERS:
        return MaskLimit(value=probability, of_probabilities=True)
    if probability in (0.0, 1.0):
        return MaskLimit(value=math.copysign(math.inf, probability - 0.5), of_probabilities=False)
    return MaskLimit(value=math.log(probability / (1.0 - probability)), of_probabilities=False)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RawDetections:
    """What the detector says of one image and one phrase, Q queries of it."""

    logits: npt.NDArray[Any]
    """(Q,), before the sigmoid."""
    boxes: npt.NDArray[Any]
    """(Q, 4), left, top, right, bottom as fractions of the image."""
    masks: npt.NDArray[Any]
    """(Q, h, w), before the sigmoid."""
    presence_logit: float
    """Whether the phrase is in the image at all, before the sigmoid."""

    def __post_init__(self) -> None:
        queries = self.logits.shape[0] if self.logits.ndim == 1 else -1
        if queries < 1 or self.boxes.shape != (queries, 4) or self.masks.shape[:-2] != (queries,):
            raise ShapeError(
                "Post-processing wants logits (Q,), boxes (Q, 4) and masks (Q, h, w), "
                f"got {self.logits.shape}, {self.boxes.shape} and {self.masks.shape}."
            )


def sigmoid(logits: npt.ArrayLike) -> Floats:
    """Logistic function in float32."""
    values = np.asarray(logits, np.float32)
    with np.errstate(over="ignore"):  # exp(-x) is infinite below -88, and 1 / (1 + inf) is 0
        return np.float32(1) / (np.float32(1) + np.exp(-values))


def admitted_queries(
    raw: RawDetections, label: str, threshold: float
) -> tuple[Floats, npt.NDArray[np.intp]]:
    """Score all queries, and say which are above a threshold.

    A score is ``sigmoid(logit) * sigmoid(presence_logit)``.

    Args:
        raw: The detector's output.
        label: The phrase it was asked for.
        threshold: Equal to it is not above it.

    Returns:
        Scores (Q,), and the numbers of those above, best first.

    Raises:
        FidelityError: A score is NaN.
    """
    scores = sigmoid(raw.logits) * sigmoid(raw.presence_logit)
    refuse_nan("scores", scores, label)
    order = np.argsort(-scores, kind="stable")
    return scores, order[scores[order] > np.float32(threshold)]


def detections_from_raw(
    raw: RawDetections,
    *,
    label: str,
    size_hw: tuple[int, int],
    thresholds: Thresholds,
    reference: str = META,
) -> Detections:
    """Admit queries by score and bring their boxes and masks to image resolution.

    A score is ``sigmoid(logit) * sigmoid(presence_logit)``. Masks are resized bilinearly without
    antialiasing (``align_corners=False``): see :func:`mask_limit`; one at a time, and only around
    what they cover. Boxes are clipped to the image. ``thresholds.max_detections`` holds for this
    phrase; ``Detections.best`` brings several phrases' detections down to it.

    Args:
        raw: The detector's output.
        label: The phrase it was asked for.
        size_hw: Height and width of the image, pixels.
        thresholds: What counts as found; equal to a threshold is not above it.
        reference: Whose masks: ``meta`` or ``transformers``.

    Returns:
        Detections, best score first; ``best_scores`` holds the highest score, admitted or not.

    Raises:
        FidelityError: The output holds NaN, or masks infinity: the artifact does not compute what
            the model does.
    """
    scores, found = admitted_queries(raw, label, thresholds.score)
    best_scores = {label: float(scores.max())}
    admitted = found[: thresholds.max_detections]
    if len(admitted) == 0:
        return Detections.empty(size_hw, best_scores)
    height, width = size_hw
    boxes = raw.boxes[admitted].astype(np.float32)
    boxes *= np.array([width, height, width, height], np.float32)
    refuse_nan("boxes", boxes, label)
    limit = mask_limit(thresholds.mask, reference)
    crops = (_crop(raw.masks[query], limit, size_hw, label) for query in admitted)
    return Detections(
        masks=Masks.from_crops(crops, size_hw),
        boxes_xyxy=clipped_boxes(boxes, size_hw),
        scores=scores[admitted],
        labels=(label,) * len(admitted),
        size_hw=size_hw,
        best_scores=best_scores,
        cut_off=len(found) - len(admitted),
    )


def _crop(
    logits: npt.NDArray[Any], limit: MaskLimit, size_hw: tuple[int, int], label: str
) -> tuple[Crop, tuple[int, int]]:
    """The crop of one mask at image resolution, and row and column of its first pixel."""
    values = logits.astype(np.float32)
    refuse_infinite_masks(bool(np.isfinite(values).all()), label)
    if limit.of_probabilities:
        values = sigmoid(values)
    return crop_above(values, np.float32(limit.value), size_hw)


def refuse_nan(what: str, values: Floats, label: str) -> None:
    """Stop at NaN, which no comparison admits and which would pass for "nothing found"."""
    if np.isnan(values).any():
        raise FidelityError(_unusable(what, "NaN", label))


def refuse_infinite_masks(finite: bool, label: str) -> None:
    """Stop where not all logits of a phrase's masks are finite: resized, they would be no masks."""
    if not finite:
        raise FidelityError(_unusable("masks", "infinity or NaN", label))


def _unusable(what: str, kind: str, label: str) -> str:
    return (
        f"The detector's {what} for {label!r} hold {kind}: this artifact does not compute what "
        "the model does (half precision may have overflowed). Run samforge compare on the "
        "bundle, or build it with --precision fp32."
    )
