"""Windows over a raster: square, overlapping, and always in the same places."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from samforge.core.errors import SettingError

PixelBox: TypeAlias = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels of the raster; right and bottom exclusive."""
Place: TypeAlias = tuple[int, int]
"""Row and column of a window in its grid."""

_LEAST_SIDE = 16
_MASK_CELLS = 56


@dataclass(frozen=True)
class Grid:
    """Where windows lie: anchored at the raster's first pixel, whatever part of it is asked for.

    The last window of a row or column moves back to end with the raster, so that every window is
    whole. A raster that is smaller than a window has one, as long as its longer side.

    Raises:
        SettingError: The window is below 16 pixels, or the overlap is not below half of it.
    """

    size_hw: tuple[int, int]
    """Height and width of the raster, pixels."""
    window: int
    """Side of a window, pixels."""
    overlap: int
    """Pixels that neighbours share, at least."""

    def __post_init__(self) -> None:
        if self.window < _LEAST_SIDE:
            raise SettingError(f"A window has at least {_LEAST_SIDE} pixels, got {self.window}.")
        if not 0 < self.overlap <= self.window // 2:
            raise SettingError(
                f"Windows of {self.window} pixels overlap by 1 to {self.window // 2} pixels, got "
                f"{self.overlap}. Take at least the length of the objects, or larger windows."
            )

    @cached_property
    def side(self) -> int:
        """Side of the square that is read, pixels: smaller than a window in a small raster."""
        return min(self.window, max(self.size_hw))

    @cached_property
    def edge(self) -> int:
        """Pixels from an inner edge within which an object counts as cut.

        A mask is drawn on a coarse grid and may end a cell before the edge that cuts its object.
        """
        return max(2, self.side // _MASK_CELLS)

    @cached_property
    def starts(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """First rows and first columns of the windows, ascending."""
        return self._starts(self.size_hw[0]), self._starts(self.size_hw[1])

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of windows."""
        return len(self.starts[0]), len(self.starts[1])

    def box(self, place: Place) -> PixelBox:
        """What a window covers of the raster."""
        top, left = int(self.starts[0][place[0]]), int(self.starts[1][place[1]])
        height, width = self.size_hw
        return left, top, min(left + self.side, width), min(top + self.side, height)

    def over(self, box: PixelBox) -> Iterator[Place]:
        """Windows that share a pixel with a box, row by row."""
        left, top, right, bottom = box
        rows, columns = self._range(0, top, bottom), self._range(1, left, right)
        return ((row, column) for row in rows for column in columns)

    def inner_edges(self, place: Place) -> tuple[bool, bool, bool, bool]:
        """Whether left, top, right and bottom of a window lie inside the raster."""
        left, top, right, bottom = self.box(place)
        height, width = self.size_hw
        return left > 0, top > 0, right < width, bottom < height

    def cut(self, place: Place, box: PixelBox) -> bool:
        """Whether a box in a window reaches one of its inner edges."""
        around, near = self.box(place), self.edge
        reaches = (
            box[0] < around[0] + near,
            box[1] < around[1] + near,
            box[2] > around[2] - near,
            box[3] > around[3] - near,
        )
        return any(
            inner and one for inner, one in zip(self.inner_edges(place), reaches, strict=True)
        )

    def sees_whole(self, place: Place, box: PixelBox) -> bool:
        """Whether a box lies in a window, clear of its inner edges."""
        around = self.box(place)
        inside = (around[0] <= box[0] and around[1] <= box[1] and box[2] <= around[2]) and box[
            3
        ] <= around[3]
        return inside and not self.cut(place, box)

    def _starts(self, length: int) -> npt.NDArray[np.int64]:
        step = self.window - self.overlap
        last = max(0, length - self.side)
        return np.minimum(np.arange(-(-last // step) + 1, dtype=np.int64) * step, last)

    def _range(self, axis: int, low: int, high: int) -> range:
        starts = self.starts[axis]
        first = int(np.searchsorted(starts + self.side, low, side="right"))
        return range(first, int(np.searchsorted(starts, high, side="left")))


def intersection(one: PixelBox, other: PixelBox) -> PixelBox | None:
    """What two boxes share; None where they share no pixel."""
    left, top = max(one[0], other[0]), max(one[1], other[1])
    right, bottom = min(one[2], other[2]), min(one[3], other[3])
    return (left, top, right, bottom) if left < right and top < bottom else None


def around(boxes: list[PixelBox]) -> PixelBox:
    """The box around boxes."""
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)
