"""Masks as rings, in the two ways that other tools read corners: edges of pixels, or pixels."""

from __future__ import annotations

import numpy as np

from samforge.core.runs import Crop
from samforge.formats.outlines import Outline, polygons_from_crop, simplified
from samforge.formats.seams import Ring

_WITHIN_PX = 0.5
_STAIRS_PX = 0.75


def rings_from_crop(
    crop: Crop, top_left: tuple[int, int], *, epsilon_factor: float | None = None
) -> list[Ring]:
    """A ring for each part of a mask, the largest first; seams of no width lead into its holes.

    Args:
        crop: bool (h, w).
        top_left: Row and column of its first pixel.
        epsilon_factor: How far a ring may leave the pixels' edges, as a share of the mask's
            perimeter, as OpenCV's users give it. Above 0 it leaves 0.75 pixels at least, which
            hides the stairs of slanted edges. None for what outlines leave by themselves.

    Returns:
        (V, 2) each, x and y along the edges of pixels.
    """
    if epsilon_factor is None:
        outline = polygons_from_crop(crop, top_left)
    else:
        padded = np.pad(crop, 1).astype(np.int8)
        perimeter = sum(float(np.abs(np.diff(padded, axis=axis)).sum()) for axis in (0, 1))
        within = max(_STAIRS_PX, epsilon_factor * perimeter) if epsilon_factor else 0.0
        outline = polygons_from_crop(crop, top_left, tolerance_px=within)
    return outline.bridged_parts()


def pixel_rings_from_crop(crop: Crop, top_left: tuple[int, int]) -> list[Ring]:
    """The same for tools that fill a polygon with its own pixels, as OpenCV's ``fillPoly`` does.

    Corners are pixels of the mask, where those along edges would add a row and a column to it. A
    ring leaves the mask by half a pixel at most.

    Returns:
        (V, 2) each, x and y of pixels.
    """
    exact = polygons_from_crop(crop, top_left, tolerance_px=0.0)
    parts = tuple((_of_pixels(ring), tuple(map(_of_pixels, holes))) for ring, holes in exact.parts)
    return Outline(parts=parts).bridged_parts()


def _of_pixels(ring: Ring) -> Ring:
    return simplified(_pixels(ring), _WITHIN_PX)


def _pixels(ring: Ring) -> Ring:
    """The pixel of the mask inside each corner; the mask lies at the right of a ring's way."""
    coming = ring - np.roll(ring, 1, axis=0)
    going = np.roll(ring, -1, axis=0) - ring
    steps = coming + going  # one of them runs along x, the other along y
    x = ring[:, 0] - (steps[:, 1] > 0)
    y = ring[:, 1] - (steps[:, 0] < 0)
    return np.stack([x, y], axis=1)
