"""Objects larger than what windows share: seen on a small picture of the whole raster.

No window is sure to show them whole, and cut pieces may look like nothing. Where the windows'
pieces join to the same object, theirs is the finer outline and stays; else the small picture's
outline counts, and the pieces inside it are dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from samforge.core.detections import Detections
from samforge.core.runs import Crop
from samforge.rasters.grid import PixelBox, intersection
from samforge.rasters.outline import outline_of_crop
from samforge.rasters.pieces import Piece
from samforge.rasters.resolve import StitchedObject
from samforge.rasters.stitch import SAME

_BLUR = 2
"""Pixels of the small picture by which an object may look longer than it is."""


@dataclass(kw_only=True, slots=True, eq=False)
class LargeObject:
    """An object that the small picture shows, and what windows found inside it."""

    label: str
    """The phrase that found it."""
    score: float
    """0 to 1."""
    crop: Crop
    """Its pixels in the small picture."""
    left_top: tuple[int, int]
    """Column and row of the first of them."""
    scale: tuple[float, float]
    """Pixels of the raster along one of the small picture, across and down."""
    inside: list[StitchedObject] = field(default_factory=list)
    """What windows found, at least half of it in here."""

    @property
    def box(self) -> PixelBox:
        """Around it, in pixels of the raster."""
        (left, top), (across, down) = self.left_top, self.scale
        height, width = self.crop.shape
        return (
            int(left * across),
            int(top * down),
            int(np.ceil((left + width) * across)),
            int(np.ceil((top + height) * down)),
        )

    @property
    def area(self) -> float:
        """Pixels of the raster."""
        return float(np.count_nonzero(self.crop)) * self.scale[0] * self.scale[1]

    def outline(self) -> Any:
        """As a shapely geometry, in columns and rows of the raster."""
        from shapely.affinity import scale

        return scale(outline_of_crop(self.crop, self.left_top), *self.scale, origin=(0, 0))

    def longest_part(self) -> float:
        """Longer side of its longest connected part, in pixels of the raster.

        Specks far from each other are no large object.
        """
        from scipy import ndimage

        numbers, _ = ndimage.label(self.crop)
        parts = ndimage.find_objects(numbers)
        across, down = self.scale
        sides = [
            max((rows.stop - rows.start) * down, (columns.stop - columns.start) * across)
            for rows, columns in parts
        ]
        return float(max(sides))

    def covers(self, pieces: Iterable[Piece]) -> int:
        """Pixels of pieces that lie in it; where pieces overlap, they count again."""
        return sum(map(self._covers, pieces))

    def takes(self, found: StitchedObject) -> bool:
        """Hold what windows found, if at least half of it lies in here."""
        if found.label != self.label or intersection(found.box, self.box) is None:
            return False
        area = sum(piece.area for piece in found.pieces)
        if self.covers(found.pieces) < SAME * area:
            return False
        self.inside.append(found)
        return True

    def outcome(self) -> tuple[bool, list[StitchedObject]]:
        """Whether it is an object of its own, and which of those inside are."""
        shared = [self.covers(found.pieces) for found in self.inside]
        areas = [sum(piece.area for piece in found.pieces) for found in self.inside]
        again = any(
            both >= SAME * (self.area + area - both)
            for both, area in zip(shared, areas, strict=True)
        )
        whole = [not found.cut for found in self.inside]
        filled = sum(both for both, one in zip(shared, whole, strict=True) if one)
        # Two whole objects inside, or one that fills it, are what the small picture runs together.
        if again or sum(whole) > 1 or filled >= SAME * self.area:
            return False, self.inside
        return True, [found for found, one in zip(self.inside, whole, strict=True) if one]

    def _covers(self, piece: Piece) -> int:
        left, top, right, bottom = piece.box
        columns = self._inner(np.arange(left, right), 0)
        rows = self._inner(np.arange(top, bottom), 1)
        pixels = piece.crop.pixels(piece.box)
        inside = np.zeros(pixels.shape, np.bool_)
        known = np.ix_(rows >= 0, columns >= 0)
        inside[known] = self.crop[np.ix_(rows[rows >= 0], columns[columns >= 0])]
        return int(np.count_nonzero(inside & pixels))

    def _inner(self, pixels: Any, axis: int) -> Any:
        """Column or row of the crop that a pixel of the raster lies in; -1 outside it."""
        place = np.floor((pixels + 0.5) / self.scale[axis]).astype(np.int64) - self.left_top[axis]
        place[place >= self.crop.shape[1 - axis]] = -1
        return np.maximum(place, -1)


def large_objects(
    found: Detections, raster_hw: tuple[int, int], small_hw: tuple[int, int], longer_than: int
) -> list[LargeObject]:
    """What the small picture shows that is longer than windows overlap.

    Args:
        found: Detections of the small picture, or of a square that begins with it.
        raster_hw: Height and width of the raster.
        small_hw: Height and width of the small picture.
        longer_than: Pixels of the raster.
    """
    height, width = small_hw
    least = longer_than + _BLUR * max(raster_hw[0] / height, raster_hw[1] / width)
    scale = (raster_hw[1] / width, raster_hw[0] / height)
    large = []
    for number, label in enumerate(found.labels):
        pixels, (row, column) = found.masks.crop(number)
        pixels = pixels[: max(0, height - row), : max(0, width - column)]
        if not pixels.any():
            continue
        one = LargeObject(
            label=label,
            score=float(found.scores[number]),
            crop=pixels,
            left_top=(column, row),
            scale=scale,
        )
        if one.longest_part() > least:
            large.append(one)
    return large


def holder(large: Sequence[LargeObject], found: StitchedObject) -> LargeObject | None:
    """The large object that takes what windows found, if one does."""
    return next((one for one in large if one.takes(found)), None)
