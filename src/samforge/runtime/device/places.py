"""Where the bits of each mask lie: its crop at image size, and its bytes among those of others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from samforge.core.triton_here import HAS_TRITON

COLUMNS = 7
"""Of a table of places: phrase, query, first row, row behind the last, first column, bytes in a
row, first byte."""
_MARGIN = 2  # rows and columns: integers and the rounded centres of a resize differ by less than 1


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Places:
    """Crops of K masks of one image, one behind the other in memory."""

    table: npt.NDArray[np.int32]
    """(K, 7), see ``COLUMNS``."""
    size_hw: tuple[int, int]
    """Height and width of the image."""

    def __len__(self) -> int:
        return len(self.table)

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Bytes of each mask, (K,)."""
        return (self.table[:, 3] - self.table[:, 2]).astype(np.int64) * self.table[:, 5]

    @property
    def total(self) -> int:
        """Bytes of all."""
        return int(self.sizes.sum())

    def groups(self, most: int) -> Iterator[Places]:
        """Masks in their order, in groups of at most ``most`` bytes, each beginning at byte 0."""
        sizes, start = self.sizes, 0
        while start < len(self):
            ends = np.cumsum(sizes[start:])
            stop = start + max(1, int(np.searchsorted(ends, most, side="right")))
            table = self.table[start:stop].copy()
            table[:, 6] -= table[0, 6]
            yield Places(table=table, size_hw=self.size_hw)
            start = stop


def places_from_reach(
    index: npt.NDArray[np.integer],
    reach: npt.NDArray[np.int32],
    cells_hw: tuple[int, int],
    size_hw: tuple[int, int],
) -> Places:
    """Lay out the crops of masks at image size.

    A pixel's source lies at ``(pixel + 0.5) * cells / pixels - 0.5`` between two cells (bilinear,
    ``align_corners=False``); where neither is above the limit, nor is the pixel. So a crop reaches
    one cell further than the cells above it. It begins at a column that 8 divides.

    Args:
        index: (K, 2), phrase and query of each mask; below 0 there is none.
        reach: (K, 4), as :func:`samforge.runtime.device.reach.reach_reference` has it.
        cells_hw: Height and width of the logits.
        size_hw: Height and width of the image.
    """
    rows, start = [], 0
    # A few masks as a rule: twenty operations on small arrays would take longer than all of these.
    for (phrase, query), ends in zip(index.tolist(), reach.tolist(), strict=True):
        top = bottom = left = columns = 0
        if ends[1] >= 0 and phrase >= 0:
            top, bottom = _span(-ends[0], ends[1], cells_hw[0], size_hw[0])
            left, right = _span(-ends[2], ends[3], cells_hw[1], size_hw[1])
            left = left // 8 * 8
            columns = (right - left + 7) // 8
        rows.append((phrase, query, top, bottom, left, columns, start))
        start += (bottom - top) * columns
    return Places(table=np.array(rows, np.int32).reshape(-1, COLUMNS), size_hw=size_hw)


def _span(first: int, last: int, cells: int, pixels: int) -> tuple[int, int]:
    """Pixels, the second end outside, that may lie next to cells from ``first`` to ``last``."""
    start = max(2 * first - 1, 0) * pixels // (2 * cells) - _MARGIN
    stop = (2 * last + 3) * pixels // (2 * cells) + _MARGIN
    return max(start, 0), min(stop, pixels)


def places_on_device(
    index: Tensor, reach: Tensor, cells_hw: tuple[int, int], size_hw: tuple[int, int]
) -> Tensor:
    """The table of :func:`places_from_reach`, (K, 7), int32, made where ``reach`` is.

    Args:
        index: (K, 2), int32, on the device: phrase and query of each mask, or -1.
        reach: (P, Q, 4), int32, of one image.
        cells_hw: Height and width of the logits.
        size_hw: Height and width of the image.
    """
    if HAS_TRITON and reach.device.type == "cuda":
        return _places_by_kernel(index, reach, cells_hw, size_hw)
    phrase, query = index.long().clamp(min=0).unbind(1)
    chosen = reach[phrase, query]
    places = places_from_reach(index.cpu().numpy(), chosen.cpu().numpy(), cells_hw, size_hw)
    return torch.from_numpy(places.table).to(reach.device)


if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _start(first, cells, pixels, margin: tl.constexpr):  # type: ignore[no-untyped-def]
        return tl.maximum(tl.maximum(2 * first - 1, 0) * pixels // (2 * cells) - margin, 0)

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _stop(last, cells, pixels, margin: tl.constexpr):  # type: ignore[no-untyped-def]
        return tl.minimum((2 * last + 3) * pixels // (2 * cells) + margin, pixels)

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _lay_out(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
        index_ptr, reach_ptr, out_ptr, queries, slots, high, wide, height, width,
        margin: tl.constexpr, columns: tl.constexpr, block: tl.constexpr,
    ):  # fmt: skip
        """All masks in one program, because each begins where those before it end."""
        slot = tl.arange(0, block)
        here = slot < slots
        phrase = tl.load(index_ptr + slot * 2, mask=here, other=-1)
        query = tl.load(index_ptr + slot * 2 + 1, mask=here, other=-1)
        there = here & (phrase >= 0)
        reach_ptr += (phrase * queries + query) * 4
        last_row = tl.load(reach_ptr + 1, mask=there, other=-1)
        found = there & (last_row >= 0)
        last_row = tl.where(found, last_row, 0)
        first_row = -tl.load(reach_ptr, mask=found, other=0)
        first_column = -tl.load(reach_ptr + 2, mask=found, other=0)
        last_column = tl.load(reach_ptr + 3, mask=found, other=0)
        top = _start(first_row, high, height, margin)
        bottom = tl.where(found, _stop(last_row, high, height, margin), top)
        left = _start(first_column, wide, width, margin) // 8 * 8
        right = _stop(last_column, wide, width, margin)
        wide_bytes = tl.where(found, (right - left + 7) // 8, 0)
        size = (bottom - top) * wide_bytes
        out_ptr += slot * columns
        tl.store(out_ptr, phrase, mask=here)
        tl.store(out_ptr + 1, query, mask=here)
        tl.store(out_ptr + 2, top, mask=here)
        tl.store(out_ptr + 3, bottom, mask=here)
        tl.store(out_ptr + 4, left, mask=here)
        tl.store(out_ptr + 5, wide_bytes, mask=here)
        tl.store(out_ptr + 6, tl.cumsum(size, 0) - size, mask=here)

    def _places_by_kernel(
        index: Tensor, reach: Tensor, cells_hw: tuple[int, int], size_hw: tuple[int, int]
    ) -> Tensor:
        out = torch.empty((len(index), COLUMNS), dtype=torch.int32, device=reach.device)
        _lay_out[1,](
            index, reach.contiguous(), out, reach.shape[1], len(index), *cells_hw, *size_hw,
            margin=_MARGIN, columns=COLUMNS, block=max(32, triton.next_power_of_2(len(index))),
            num_warps=1,
        )  # fmt: skip
        return out
