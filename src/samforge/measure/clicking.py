"""Clicks as a person would make them: first in the middle, then where the answer is most wrong.

Source: ``get_next_point`` with ``center`` in SAM 2's training/model_sam2_utils.py
(facebookresearch/sam2), after Sofiiuk et al. (https://arxiv.org/abs/2102.06583, RITM).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt

from samforge.measure.regions import region_similarity
from samforge.runtime import EncodedImage, ObjectPrompt

if TYPE_CHECKING:
    from samforge.core.images import ImageSource
    from samforge.runtime import Segmenter

Mask = npt.NDArray[np.bool_]


def first_click(mask: Mask) -> tuple[float, float]:
    """The pixel of a mask (H, W) that is farthest from its edge, x and y; the picture's edge too.

    It is pixel (0, 0) where the mask is empty.
    """
    row, column = np.unravel_index(int(_depth(mask).argmax()), mask.shape)
    return float(column), float(row)


def next_click(found: Mask, true: Mask) -> tuple[float, float, int]:
    """Where an answer (H, W) is wrong at its thickest, x and y, and the label that corrects it.

    Where nothing is wrong it is one more click on the object.
    """
    missed, added = true & ~found, found & ~true
    if not missed.any() and not added.any():
        return (*first_click(true), 1)
    on_object = _depth(missed).max() >= _depth(added).max()
    return (*first_click(missed if on_object else added), int(on_object))


def iou_after_clicks(
    segmenter: Segmenter,
    image: ImageSource | EncodedImage,
    true: Mapping[int, Mask],
    clicks: int,
    *,
    hole_area: int | None = None,
) -> dict[int, tuple[float, ...]]:
    """Click on every object of an image, correct each answer, and say how right each one is.

    Args:
        segmenter: With the part ``point_decoder``.
        image: The image, encoded or not.
        true: Masks (H, W) of the objects, by number.
        clicks: On each object, at least one: all that were made are asked again, with the answer
            before to be refined.
        hole_area: Of ``predict_objects``.

    Returns:
        IoU after every click, by number.
    """
    if not true:
        return {}
    encoded = image if isinstance(image, EncodedImage) else segmenter.encode(image)
    places: dict[int, list[tuple[float, float, int]]]
    places = {number: [(*first_click(mask), 1)] for number, mask in true.items()}
    ious: dict[int, list[float]] = {number: [] for number in true}
    answer = None
    for _ in range(clicks):
        prompts = [
            ObjectPrompt(points=[one[:2] for one in own], labels=[one[2] for one in own])
            for own in places.values()
        ]
        answer = segmenter.predict_objects(encoded, prompts, earlier=answer, hole_area=hole_area)
        _grade(answer.masks.dense(), true, ious, places)
    return {number: tuple(own) for number, own in ious.items()}


def _grade(
    found: Mask,
    true: Mapping[int, Mask],
    ious: Mapping[int, list[float]],
    places: Mapping[int, list[tuple[float, float, int]]],
) -> None:
    for mask, (number, wanted) in zip(found, true.items(), strict=True):
        ious[number].append(region_similarity(mask, wanted))
        places[number].append(next_click(mask, wanted))


def _depth(mask: Mask) -> npt.NDArray[np.float64]:
    """Distance of each pixel of a mask to the nearest one outside, pixels; 0 outside."""
    depth: npt.NDArray[np.float64] = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    return depth
