"""Checks of COCO's polygons, before compiled code draws them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from samforge.core.errors import SettingError

MOST_STEPS = 1 << 24
"""Steps along the outlines of one object. pycocotools walks five to a pixel and keeps some 30 bytes
of each, so more would take over half a gigabyte; no outline in a picture of 178 megapixels that a
person or a model drew comes near it."""
_STEPS_A_PIXEL = 5


def checked_polygons(
    polygons: Sequence[Any], size_hw: tuple[int, int]
) -> list[npt.NDArray[np.float64]]:
    """Check polygons for pycocotools, which takes any numbers and may not survive them.

    It turns coordinates into 32-bit integers and allocates as many steps as the outline is long: a
    NaN or 1e9 ends the process or fills its memory (pycocotools 2.0.11, common/maskApi.c,
    ``rleFrPoly``). Four numbers it takes for a box.

    Args:
        polygons: Lists of x, y, x, y, x, y, …
        size_hw: Height and width of the picture, pixels.

    Returns:
        One array a polygon.

    Raises:
        SettingError: Names the first polygon that is none, or is far outside the picture.
    """
    if not polygons:
        raise SettingError("A segmentation has at least one polygon, got none.")
    checked = [checked_polygon(polygon, f"Polygon {i}") for i, polygon in enumerate(polygons)]
    side = max(size_hw)
    for i, polygon in enumerate(checked):
        low, high = float(polygon.min()), float(polygon.max())
        if low < -side or high > 2 * side:
            height, width = size_hw
            raise SettingError(
                f"Polygon {i} reaches from {low:g} to {high:g}, far outside the picture, which is "
                f"{width} wide and {height} high. Give pixels of the picture."
            )
    steps = _STEPS_A_PIXEL * sum(map(_outline, checked))
    if steps > MOST_STEPS:
        raise SettingError(
            f"The outline of the polygons is {steps // _STEPS_A_PIXEL:,} pixels long, at most "
            f"{MOST_STEPS // _STEPS_A_PIXEL:,} are drawn. Give the mask as RLE."
        )
    return checked


def checked_polygon(polygon: object, name: str) -> npt.NDArray[np.float64]:
    """Check that a polygon is a list of finite numbers: at least three points, each x and y.

    Raises:
        SettingError: It is not.
    """
    usable = (
        isinstance(polygon, Sequence | np.ndarray)
        and not isinstance(polygon, str | bytes)
        and len(polygon) >= 6
        and len(polygon) % 2 == 0
        and all(map(_is_number, polygon))
    )
    if not usable:
        raise SettingError(
            f"{name} is no list of x, y, x, y, x, y, … of three points or more: {polygon!r:.80}."
        )
    try:
        values = np.asarray(polygon, np.float64)
    except OverflowError:  # an integer beyond every float
        values = np.array([np.inf])
    if not np.isfinite(values).all():
        raise SettingError(f"{name} has a coordinate that is not finite: {polygon!r:.80}.")
    return values


def _outline(polygon: npt.NDArray[np.float64]) -> int:
    """Length in the way pycocotools walks it: the longer of both directions, edge by edge."""
    points = polygon.reshape(-1, 2)
    edges = np.abs(points - np.roll(points, 1, axis=0)).max(axis=1)
    return int(edges.sum()) + len(points)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
