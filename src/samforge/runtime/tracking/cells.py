"""Where masks are, a bit a cell: overlaps of many masks without a pass over all their logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Masks: TypeAlias = npt.NDArray[Any]
Rows = npt.NDArray[np.intp]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
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

    @property
    def areas(self) -> npt.NDArray[np.int64]:
        """(N,), cells of each mask."""
        areas: npt.NDArray[np.int64] = np.bitwise_count(self.bits).sum(axis=1, dtype=np.int64)
        return areas

    @property
    def any(self) -> npt.NDArray[np.bool_]:
        """(N,): which masks have a cell."""
        return self.boxes[:, 2] > self.boxes[:, 0]

    def taken(self, rows: Rows | Sequence[int]) -> Cells:
        """The masks of some rows, in the order of ``rows``."""
        at = np.asarray(rows, np.intp)
        return Cells(size_hw=self.size_hw, bits=self.bits[at], boxes=self.boxes[at])

    def shared_with(self, other: Cells) -> npt.NDArray[np.int64]:
        """(N, M): cells that each mask shares with each of another stack of the same size."""
        shared = np.zeros((len(self), len(other)), np.int64)
        meets = boxes_meeting(self.boxes, other.boxes)
        for row in np.flatnonzero(meets.any(axis=1)):
            others = np.flatnonzero(meets[row])
            both = np.bitwise_count(self.bits[row] & other.bits[others])
            shared[row, others] = both.sum(axis=1, dtype=np.int64)
        return shared


def cells_from_masks(masks: Masks) -> Cells:
    """Find the cells of masks (N, h, w), logits or booleans, that are above 0."""
    count, height, width = masks.shape
    packed = np.packbits(masks > 0, axis=2)  # [N, h, w / 8]
    boxes = np.zeros((count, 4), np.intp)
    rows = np.logical_or.reduce(packed, axis=2)
    columns = np.unpackbits(np.bitwise_or.reduce(packed, axis=1), axis=1, count=width)
    for low, high, found in ((0, 2, columns), (1, 3, rows)):
        there = found.any(axis=1)
        boxes[there, low] = found[there].argmax(axis=1)
        boxes[there, high] = found.shape[1] - found[there, ::-1].argmax(axis=1)
    flat = packed.reshape(count, packed.shape[1] * packed.shape[2])
    bits = np.zeros((count, -(-flat.shape[1] // 8) * 8), np.uint8)
    bits[:, : flat.shape[1]] = flat
    return Cells(size_hw=(height, width), bits=bits.view(np.uint64), boxes=boxes)


def boxes_meeting(first: Rows, second: Rows) -> npt.NDArray[np.bool_]:
    """(N, M): which boxes (N, 4) share a cell with which of (M, 4)."""
    begins = np.maximum(first[:, None, :2], second[None, :, :2])
    ends = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shares: npt.NDArray[np.bool_] = np.logical_and.reduce(begins < ends, axis=2)
    return shares
