"""Clicks on one image: points, boxes and earlier answers of objects -> their masks.

Equal to Meta's predictor for images (``predict`` of sam3/model/sam1_task_predictor.py), with all
objects of a call as one batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from samforge.core.boxes import clipped_boxes
from samforge.core.capabilities import POINT_DECODER
from samforge.core.detections import Detections
from samforge.core.errors import PromptError, SettingError
from samforge.core.masks import Masks
from samforge.core.reference import META, TRANSFORMERS
from samforge.runtime._resize import crop_above
from samforge.runtime.postprocess import MaskLimit, mask_limit, refuse_nan, sigmoid
from samforge.runtime.prompts import PADDING
from samforge.runtime.tracking.calls import FED
from samforge.runtime.tracking.masks import without_holes
from samforge.runtime.tracking.parts import FRAME_FEATURES, TrackerFacts, TrackerParts
from samforge.runtime.tracking.prompts import ObjectPrompt, points_of
from samforge.runtime.tracking.resize import resampled

GIVEN = np.float32(10)
"""Logit of a mask that is given, as in Meta's session of a video."""
HOLE_SHARES = {META: 256 / 288**2, TRANSFORMERS: 0.0}
"""Holes of up to such a share of all cells are filled before a mask is enlarged.

Source: Meta's ``max_hole_area=256`` of SAM 3's 288 x 288 cells. A model with masks of fewer cells
fills the same share: of 64 x 64, 256 cells would be what is inside of a large ring.
"""
HOLE_LOGIT = np.float32(10)
_MOST_AREA = 2**31 - 1

Floats = npt.NDArray[np.float32]


def clicked(  # noqa: PLR0913  # all of a question
    parts: TrackerParts,
    features: Mapping[str, Any],
    prompts: Sequence[ObjectPrompt],
    size_hw: tuple[int, int],
    *,
    earlier: Detections | None = None,
    candidates: bool = False,
    mask_threshold: float = 0.5,
    hole_area: int | None = None,
) -> Detections:
    """Answer the prompts of objects in one image.

    Args:
        parts: What runs ``point_decoder``.
        features: Of the image.
        prompts: One for each object, at least one.
        size_hw: Height and width of the image, pixels.
        earlier: What is known of the objects, a row for each prompt: it is refined.
        candidates: Whether all three masks of each object are given, best first, or the best.
        mask_threshold: Pixels of a mask have a probability above it.
        hole_area: Holes of up to so many cells are filled; None for what the reference does.

    Returns:
        A row for each prompt, in order, or three of them. Scores are the IoU that the model
        expects of the mask; ``logits`` are what a later call refines.

    Raises:
        PromptError: There is no prompt, or one does not fit the image, or ``earlier`` is of others.
        FidelityError: The answer holds NaN.
        SettingError: ``hole_area`` is no whole number from 0.
    """
    area = hole_area_of(parts.facts) if hole_area is None else _checked_area(hole_area)
    if not prompts:
        raise PromptError("There is nothing to ask. Give a prompt for each object, at least one.")
    _check_earlier(earlier, len(prompts), size_hw)
    labels = tuple(
        f"object {row + 1}" if earlier is None else earlier.labels[row]
        for row in range(len(prompts))
    )
    found = []
    for start in range(0, len(prompts), parts.facts.most_objects):
        rows = slice(start, start + parts.facts.most_objects)
        asked = prompts[rows]
        inputs = _inputs(asked, size_hw, parts.facts, None if earlier is None else earlier[rows])
        maps = {name: features[name] for name in FRAME_FEATURES}
        out = parts.run(POINT_DECODER, maps | inputs)
        logits, ious = parts.to_host(out["mask_logits"]), parts.to_host(out["iou"])
        for row, one in enumerate(asked):
            refuse_nan("IoUs", ious[row], labels[start + row])
            chosen = _chosen(ious[row], doubtful=_is_doubtful(one, earlier), all_of=candidates)
            found.append((labels[start + row], logits[row][chosen], ious[row][chosen]))
    limit = mask_limit(mask_threshold, parts.facts.reference)
    return _detections(found, size_hw, limit, area)


def hole_area_of(facts: TrackerFacts) -> int:
    """Cells of the largest hole that is filled unless somebody asks for another."""
    return round(HOLE_SHARES[facts.reference] * facts.mask_side**2)


def _checked_area(area: int) -> int:
    if isinstance(area, bool) or not isinstance(area, int) or not 0 <= area <= _MOST_AREA:
        raise SettingError(
            f"hole_area is {area!r:.40}. Give the cells of the largest hole to fill, a whole "
            f"number up to {_MOST_AREA:,}; 0 fills none."
        )
    return area


def _check_earlier(earlier: Detections | None, count: int, size_hw: tuple[int, int]) -> None:
    if earlier is None:
        return
    if len(earlier) != count:
        raise PromptError(
            f"There are {count} prompts and {len(earlier)} earlier answers. Give one for each "
            "prompt: predict_objects(image, prompts, earlier=found[[0, 2]])."
        )
    if earlier.size_hw != size_hw:
        raise PromptError(
            f"The earlier answers are of an image of {earlier.size_hw} (H, W), and this one is "
            f"{size_hw}. Give answers about this image."
        )


def _is_doubtful(prompt: ObjectPrompt, earlier: Detections | None) -> bool:
    """Whether a prompt can mean a thing, its part, or what it is a part of."""
    if earlier is not None or prompt.box_xyxy is not None or prompt.mask is not None:
        return False
    return len(np.asarray(prompt.points)) == 1


def _chosen(ious: Floats, *, doubtful: bool, all_of: bool) -> npt.NDArray[np.intp]:
    """Rows of the four masks: the first is the single one, the others are the choice of three."""
    choice = 1 + np.argsort(-ious[1:], kind="stable")
    if all_of:
        return choice
    return choice[:1] if doubtful else np.zeros(1, np.intp)


def _inputs(
    prompts: Sequence[ObjectPrompt],
    size_hw: tuple[int, int],
    facts: TrackerFacts,
    earlier: Detections | None,
) -> dict[str, npt.NDArray[Any]]:
    """Prompts as one batch, filled up with padding."""
    asked = [points_of(one, size_hw, facts) for one in prompts]
    longest = max(1, *(len(labels) for _, labels in asked))
    points = np.zeros((len(asked), longest, 2), np.float32)
    labels = np.full((len(asked), longest), PADDING, np.int64)
    masks = np.zeros((len(asked), 1, facts.mask_side, facts.mask_side), np.float32)
    known = np.zeros(len(asked), np.bool_)
    for row, (one, (places, kinds)) in enumerate(zip(prompts, asked, strict=True)):
        points[row, : len(kinds)], labels[row, : len(kinds)] = places, kinds
        if one.mask is not None:
            masks[row, 0] = _logits_of(np.asarray(one.mask) > 0, facts)
            known[row] = True
        elif earlier is not None:
            masks[row, 0] = _fed_back(earlier[row], facts)
            known[row] = True
    return {"points": points, "point_labels": labels, "mask_input": masks, "has_mask": known}


def _fed_back(answer: Detections, facts: TrackerFacts) -> Floats:
    """What is known of one object, as the decoder takes it."""
    logits = answer.logits
    if logits is not None and logits.shape[1:] == (facts.mask_side, facts.mask_side):
        fed: Floats = logits[0].clip(-FED, FED)
        return fed
    return _logits_of(answer.masks.dense()[0], facts)


def _logits_of(mask: npt.NDArray[np.bool_], facts: TrackerFacts) -> Floats:
    share = resampled(mask[None].astype(np.float32), (facts.mask_side, facts.mask_side))[0]
    logits: Floats = GIVEN * (2 * share - np.float32(1))
    return logits


def _detections(
    found: Sequence[tuple[str, Floats, Floats]],
    size_hw: tuple[int, int],
    limit: MaskLimit,
    hole_area: int,
) -> Detections:
    labels = tuple(label for label, logits, _ in found for _ in logits)
    logits = np.concatenate([one for _, one, _ in found])
    for label, one in zip(labels, logits, strict=True):
        refuse_nan("masks", one, label)
    shown = without_holes(logits, hole_area, HOLE_LOGIT) if hole_area else logits
    if limit.of_probabilities:
        shown = sigmoid(shown)
    masks = Masks.from_crops(
        (crop_above(one, np.float32(limit.value), size_hw) for one in shown), size_hw
    )
    scores = np.concatenate([ious for _, _, ious in found]).clip(0, 1)
    return Detections(
        masks=masks,
        boxes_xyxy=clipped_boxes(masks.boxes.astype(np.float32), size_hw),
        scores=scores.astype(np.float32),
        labels=labels,
        size_hw=size_hw,
        logits=logits.clip(-FED, FED),
    )
