"""Boxes that are given out: inside their picture, so that whoever gets them can give them back."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Boxes = npt.NDArray[np.float32]

_ROUNDING = 1e-6
"""Of a coordinate that went through float32 and back, relative to the side of the picture."""
_SLACK_PX = 1e-3


def clipped_boxes(boxes_xyxy: Boxes, size_hw: tuple[int, int]) -> Boxes:
    """Clip boxes to their picture; what has no area there becomes one pixel, the nearest.

    A detector's boxes often reach a little over the edge, and a box of no area can be neither drawn
    nor used as an exemplar.

    Args:
        boxes_xyxy: (N, 4), pixels: left, top, right, bottom. No NaN.
        size_hw: Height and width of the picture.

    Returns:
        (N, 4), within 0 to width and 0 to height, left below right and top below bottom.
    """
    height, width = size_hw
    sides = np.array([width, height], np.float32)
    low = np.clip(boxes_xyxy[:, :2], 0, sides).astype(np.float32)
    high = np.clip(boxes_xyxy[:, 2:], 0, sides).astype(np.float32)
    flat = low >= high
    pixel = np.minimum(np.floor(np.minimum(low, high)), sides - 1)
    low = np.where(flat, pixel, low)
    high = np.where(flat, pixel + 1, high)
    return np.concatenate([low, high], axis=1).astype(np.float32)


def rounding_px(size_hw: tuple[int, int]) -> float:
    """How far a box may stick out of its picture by rounding alone, in pixels.

    COCO keeps left and width, and their sum need not be the right edge again.
    """
    return max(size_hw) * _ROUNDING + _SLACK_PX
