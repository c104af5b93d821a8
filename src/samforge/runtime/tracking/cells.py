"""Where masks are, a bit a cell: overlaps of many masks without a pass over all their logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Masks: TypeAlias = npt.NDArray[Any]
Rows = npt.NDArray[np.intp]
_PAIRS = 256  # compared in one go: their bits take a few megabytes


@dataclass(frozen=True, kw_only=True, eq=False)  # no slots: areas are kept once they are known
class Cells:
    """The cells of N masks that are above 0."""

    size_hw: tuple[int, int]
    """Height and width of the masks."""
    bits: npt.NDArray[np.uint64]
    """(N, K): a bit a cell, row by row; each row of cells begins a byte."""
    boxes: Rows
    """(N, 4): left, top, right, bottom of the cells; zeros where there is none."""

    def __len__(self) -> int:
        return len(self.bits)

    @cached_property
    def areas(self) -> npt.NDArray[np.int64]:
        """(N,), cells of each mask."""
        areas: npt.NDArray[np.int64] = np.bitwise_count(self.bits).sum(axis=1, dtype=np.int64)
        return areas

    @property
    def any(self) -> npt.NDArray[np.bool_]:
        """(N,): which masks have a cell."""
        return self.boxes[:, 2] > self.boxes[:, 0]

    @property
    def has_square(self) -> npt.NDArray[np.bool_]:
        """(N,): which masks hold four cells that meet in a corner."""
        height, width = self.size_hw
        across = -(-width // 8)
        packed = self.bits.view(np.uint8)[:, : height * across].reshape(len(self), height, across)
        # Most masks have such cells in their middle: all rows of the others alone are looked at.
        middle = ((self.boxes[:, 1] + self.boxes[:, 3]) // 2).clip(1, max(1, height - 1))
        if height < 2:
            return np.zeros(len(self), np.bool_)
        every = np.arange(len(self))
        found: npt.NDArray[np.bool_] = np.asarray(
            _squares(packed[every, middle - 1] & packed[every, middle]).any(axis=1), np.bool_
        )
        others = np.flatnonzero(~found & self.any)
        if len(others):
            rows = packed[others]
            found[others] = _squares(rows[:, 1:] & rows[:, :-1]).any(axis=(1, 2))
        return found

    def taken(self, rows: Rows | Sequence[int]) -> Cells:
        """The masks of some rows, in the order of ``rows``."""
        at = np.asarray(rows, np.intp)
        if len(at) == len(self) and np.array_equal(at, np.arange(len(self))):
            return self
        return Cells(size_hw=self.size_hw, bits=self.bits[at], boxes=self.boxes[at])

    def emptied(self, rows: Rows | Sequence[int]) -> Cells:
        """The masks with some of them without a cell."""
        at = np.asarray(rows, np.intp)
        bits, boxes = self.bits.copy(), self.boxes.copy()
        bits[at], boxes[at] = 0, 0
        return Cells(size_hw=self.size_hw, bits=bits, boxes=boxes)

    def widened(self, margin: int) -> Cells:
        """The same bits with boxes that reach further on each side, within the masks."""
        height, width = self.size_hw
        wider = self.boxes + margin * np.array([-1, -1, 1, 1])
        inside = wider.clip(0, [width, height, width, height])
        return replace(self, boxes=np.where(self.any[:, None], inside, 0))

    def shared_with(self, other: Cells) -> npt.NDArray[np.int64]:
        """(N, M): cells that each mask shares with each of another stack of the same size."""
        shared = np.zeros((len(self), len(other)), np.int64)
        rows, columns = np.nonzero(boxes_meeting(self.boxes, other.boxes))
        for start in range(0, len(rows), _PAIRS):
            one, two = rows[start : start + _PAIRS], columns[start : start + _PAIRS]
            both = np.bitwise_count(self.bits[one] & other.bits[two])
            shared[one, two] = both.sum(axis=1, dtype=np.int64)
        return shared


def _squares(rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Bits of (..., K) bytes whose neighbour to the right is set as well."""
    beside: npt.NDArray[np.uint8] = rows & np.left_shift(rows, np.uint8(1))
    beside[..., :-1] |= rows[..., :-1] & np.right_shift(rows[..., 1:], np.uint8(7))
    return beside


def row_bytes(size_hw: tuple[int, int]) -> int:
    """Bytes of the bits of one mask: rows begin a byte, and masks a multiple of eight."""
    height, width = size_hw
    return -(-height * -(-width // 8) // 8) * 8


def cells_from_masks(masks: Masks) -> Cells:
    """Find the cells of masks (N, h, w), logits or booleans, that are above 0."""
    count, height, width = masks.shape
    packed = np.packbits(masks > 0, axis=2).reshape(count, height * -(-width // 8))
    bits = np.zeros((count, row_bytes((height, width))), np.uint8)
    bits[:, : packed.shape[1]] = packed
    return cells_from_bits(bits, (height, width))


def cells_from_bits(bits: npt.NDArray[np.uint8], size_hw: tuple[int, int]) -> Cells:
    """Find where masks are whose bits are known.

    Args:
        bits: (N, K) of :func:`row_bytes`, the leftmost cell in the highest bit of each byte.
        size_hw: Height and width of the masks.
    """
    (height, width), count = size_hw, len(bits)
    across = -(-width // 8)
    packed = bits[:, : height * across].reshape(count, height, across)
    boxes = np.zeros((count, 4), np.intp)
    wide = _widest_words(packed)
    # Word by word: a reduction along so short an axis would take thrice as long.
    rows = wide[:, :, 0] != 0
    for column in range(1, wide.shape[2]):
        rows |= wide[:, :, column] != 0
    below = np.ascontiguousarray(np.bitwise_or.reduce(wide, axis=1)).view(np.uint8)
    columns = np.unpackbits(below, axis=1, count=width)
    for low, high, found in ((0, 2, columns), (1, 3, rows)):
        there = found.any(axis=1)
        boxes[there, low] = found[there].argmax(axis=1)
        boxes[there, high] = found.shape[1] - found[there, ::-1].argmax(axis=1)
    return Cells(size_hw=size_hw, bits=bits.view(np.uint64), boxes=boxes)


def _widest_words(packed: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    """Bytes (N, h, K) as the widest words that rows are whole numbers of."""
    for kind in (np.uint64, np.uint32, np.uint16):
        if packed.shape[2] % np.dtype(kind).itemsize == 0:
            return packed.view(kind)
    return packed


def boxes_meeting(first: Rows, second: Rows) -> npt.NDArray[np.bool_]:
    """(N, M): which boxes (N, 4) share a cell with which of (M, 4)."""
    begins = np.maximum(first[:, None, :2], second[None, :, :2])
    ends = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shares: npt.NDArray[np.bool_] = np.logical_and.reduce(begins < ends, axis=2)
    return shares
