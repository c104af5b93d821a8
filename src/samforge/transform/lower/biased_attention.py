"""Attention whose bias is a sum of one value a grid row and one a grid column: SAM 3's box bias.

A tile of 8 x 8 cells takes 8 values of either kind for each query, and times a constant matrix of
ones and zeros they are its bias. So the tensor cores add the bias while they multiply query and
key, and no score leaves the chip.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from samforge.core.triton_here import HAS_TRITON
from samforge.transform.lower.attention import for_kernel
from samforge.transform.lower.grid_bias import (
    SIDE,
    Embedding,
    edges_from_bias,
    embed_edges,
    padded,
)

ROWS = 128
"""Queries of a program."""
WARPS = 8
STAGES = 3
PROGRAMS = 264
"""Keys are split over more programs until there are so many: two for each multiprocessor of an
H100 or H200."""
DYNAMIC_SPLITS = 8
"""Parts where the batch is not known: one phrase then makes 128 programs."""
MOST_SPLITS = 32
"""Parts that the combining kernel takes at once."""
COMBINED_ROWS = 4


def attend_grid_reference(  # noqa: PLR0913, PLR0917  # as the operator takes them
    q: Tensor, k: Tensor, v: Tensor, edges: Tensor, height: int, width: int, scale: float
) -> Tensor:
    """Attend from (B, H, Q, D) to the cells of a grid, (B, H, height * width, D).

    Args:
        q: Query.
        k: Key.
        v: Value.
        edges: Of :func:`~samforge.transform.lower.grid_bias.edges_from_bias`.
        height: Rows of the grid.
        width: Columns of the grid.
        scale: Of the scores, before the bias is added.

    Returns:
        (B, Q, H, D): heads of a query together, as the projection behind it reads them.
    """
    second = padded(height)
    down, across = edges[..., :height], edges[..., second : second + width]
    bias = (down.float()[..., None] + across.float()[..., None, :]).flatten(3)
    scores = torch.matmul(q.float(), k.float().transpose(-2, -1)) * scale + bias
    attended = torch.matmul(scores.softmax(-1).to(v.dtype), v)
    return attended.transpose(1, 2).contiguous()


def splits_for(programs: Any, tiles: int) -> int:
    """Parts that keys are split into, given the programs without; for a dynamic batch a few."""
    if not isinstance(programs, int):
        return min(tiles, DYNAMIC_SPLITS)
    return max(1, min(tiles, MOST_SPLITS, PROGRAMS // programs))


if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _attend_grid(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0915, PLR0917
        q_ptr, k_ptr, v_ptr, edges_ptr, out_ptr, peaks_ptr, sums_ptr, queries, heads, splits,
        q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
        height: tl.constexpr, width: tl.constexpr, scale: tl.constexpr, log2e: tl.constexpr,
        size: tl.constexpr, whole: tl.constexpr, rows: tl.constexpr, side: tl.constexpr,
    ):  # fmt: skip
        """Streaming softmax over tiles of the grid (FlashAttention-2, arXiv:2307.08691)."""
        group, part = tl.program_id(1), tl.program_id(2)
        batch, head = (group // heads).to(tl.int64), group % heads
        row = tl.program_id(0) * rows + tl.arange(0, rows)
        column = tl.arange(0, size)
        inside = (row < queries)[:, None]
        q_at = q_ptr + batch * q_batch + head * q_head + row[:, None] * q_row + column[None, :]
        q = tl.load(q_at, mask=inside, other=0.0)
        q = (q.to(tl.float32) * scale).to(q_ptr.dtype.element_ty)
        k_ptr += batch * k_batch + head * k_head
        v_ptr += batch * v_batch + head * v_head
        down_tiles: tl.constexpr = (height + side - 1) // side
        across_tiles: tl.constexpr = (width + side - 1) // side
        tiles: tl.constexpr = down_tiles * across_tiles
        edges_at = edges_ptr + group.to(tl.int64) * queries * ((down_tiles + across_tiles) * side)
        edges_at = edges_at + row[:, None] * ((down_tiles + across_tiles) * side)
        edges_at = edges_at + tl.arange(0, side)[None, :]
        cell = tl.arange(0, side * side)
        below, right = cell // side, cell % side
        # Row 2 i picks the cells of the tile's row i, row 2 i + 1 those of its column i.
        slot = tl.arange(0, 2 * side)[:, None]
        place = tl.where(slot % 2 == 0, below[None, :], right[None, :])
        picks = tl.where(place == slot // 2, 1.0, 0.0).to(q_ptr.dtype.element_ty)
        most = tl.full((rows,), -1e30, tl.float32)
        total = tl.zeros((rows,), tl.float32)
        result = tl.zeros((rows, size), tl.float32)
        for tile in range(part * tiles // splits, (part + 1) * tiles // splits):
            top, left = tile // across_tiles * side, tile % across_tiles * side
            down = tl.load(edges_at + top, mask=inside, other=0.0)
            across = tl.load(edges_at + (down_tiles * side + left), mask=inside, other=0.0)
            edge = tl.reshape(tl.join(down, across), (rows, 2 * side))
            key = (top + below) * width + left + right
            k_at = k_ptr + key[:, None] * k_row + column[None, :]
            v_at = v_ptr + key[:, None] * v_row + column[None, :]
            if height % side == 0 and width % side == 0:
                k = tl.load(k_at)
                v = tl.load(v_at)
                scores = tl.dot(edge, picks, tl.dot(q, k.T))
            else:
                valid = (top + below < height) & (left + right < width)
                k = tl.load(k_at, mask=valid[:, None], other=0.0)
                v = tl.load(v_at, mask=valid[:, None], other=0.0)
                scores = tl.dot(edge, picks, tl.dot(q, k.T))
                scores = tl.where(valid[None, :], scores, -1e30)
            peak = tl.maximum(most, tl.max(scores, 1) * log2e)
            share = tl.exp2(scores * log2e - peak[:, None])
            shrink = tl.exp2(most - peak)
            total = total * shrink + tl.sum(share, 1)
            result = tl.dot(share.to(v_ptr.dtype.element_ty), v, result * shrink[:, None])
            most = peak
        if whole:
            out_at = out_ptr + (batch * queries * heads + head) * size
            out_at = out_at + row[:, None] * (heads * size) + column[None, :]
            result = result / total[:, None]
            tl.store(out_at, result.to(out_ptr.dtype.element_ty), mask=inside)
        else:
            first = (group.to(tl.int64) * splits + part) * queries
            out_at = out_ptr + first * size + row[:, None] * size + column[None, :]
            tl.store(out_at, result, mask=inside)
            tl.store(peaks_ptr + first + row, most, mask=row < queries)
            tl.store(sums_ptr + first + row, total, mask=row < queries)

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _combine(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
        parts_ptr, peaks_ptr, sums_ptr, out_ptr, queries, heads, splits,
        size: tl.constexpr, rows: tl.constexpr, most_splits: tl.constexpr,
    ):  # fmt: skip
        """Weigh the results over parts of the keys by their share of the whole sum."""
        group = tl.program_id(1)
        row = tl.program_id(0) * rows + tl.arange(0, rows)
        part = tl.arange(0, most_splits)[:, None]
        place = (group.to(tl.int64) * splits + part) * queries + row[None, :]
        mask = (part < splits) & (row < queries)[None, :]
        peaks = tl.load(peaks_ptr + place, mask=mask, other=-1e30)
        sums = tl.load(sums_ptr + place, mask=mask, other=0.0)
        column = tl.arange(0, size)
        parts = tl.load(
            parts_ptr + place[:, :, None] * size + column[None, None, :],
            mask=mask[:, :, None], other=0.0,
        )  # fmt: skip
        weight = tl.exp2(peaks - tl.max(peaks, 0)[None, :])
        result = tl.sum(parts * weight[:, :, None], 0) / tl.sum(sums * weight, 0)[:, None]
        batch, head = (group // heads).to(tl.int64), group % heads
        out_at = out_ptr + (batch * queries * heads + head) * size
        out_at = out_at + row[:, None] * (heads * size) + column[None, :]
        result = result.to(out_ptr.dtype.element_ty)
        tl.store(out_at, result, mask=(row < queries)[:, None])

    @torch.library.triton_op("samforge::attend_grid", mutates_args={})
    def attend_grid(  # noqa: PLR0913, PLR0917
        q: Tensor, k: Tensor, v: Tensor, edges: Tensor, height: int, width: int, scale: float
    ) -> Tensor:
        """See :func:`attend_grid_reference`."""
        batch, heads, queries, size = q.shape
        groups = batch * heads
        blocks = triton.cdiv(queries, ROWS)
        tiles = triton.cdiv(height, SIDE) * triton.cdiv(width, SIDE)
        splits = splits_for(groups * blocks, tiles)
        whole = splits == 1
        out = torch.empty((batch, queries, heads, size), dtype=q.dtype, device=q.device)
        parts, peaks, sums = out, q, q  # what a kernel does not touch may be anything
        if not whole:
            shape = (groups, splits, queries)
            parts = torch.empty((*shape, size), dtype=torch.float32, device=q.device)
            peaks = torch.empty(shape, dtype=torch.float32, device=q.device)
            sums = torch.empty(shape, dtype=torch.float32, device=q.device)
        torch.library.wrap_triton(_attend_grid)[blocks, groups, splits](
            q, k, v, edges, parts, peaks, sums, queries, heads, splits,
            q.stride(0), q.stride(1), q.stride(2), k.stride(0), k.stride(1), k.stride(2),
            v.stride(0), v.stride(1), v.stride(2),
            height=height, width=width, scale=scale, log2e=math.log2(math.e), size=size,
            whole=whole, rows=ROWS, side=SIDE, num_warps=WARPS, num_stages=STAGES,
        )  # fmt: skip
        if not whole:
            torch.library.wrap_triton(_combine)[triton.cdiv(queries, COMBINED_ROWS), groups](
                parts, peaks, sums, out, queries, heads, splits,
                size=size, rows=COMBINED_ROWS, most_splits=MOST_SPLITS, num_warps=4,
            )  # fmt: skip
        return out

    attend_grid.register_kernel("cpu")(attend_grid_reference)
else:
    attend_grid = attend_grid_reference


class BiasedAttention(nn.Module):
    """Attention to the cells of a grid with a bias for each grid row and each grid column."""

    def __init__(
        self,
        dtype: torch.dtype,
        scale: float | None,
        plain: int,
        embeddings: tuple[Embedding, Embedding] | None = None,
    ) -> None:
        """Take over an operator's settings.

        Args:
            dtype: Of query, key and value: half.
            scale: Of the scores; None takes one over the square root of the head size.
            plain: Queries without a bias in front of the others.
            embeddings: Linears that give the bias of rows and of columns, where their kernel fits.
        """
        super().__init__()
        self.dtype, self.scale, self.plain = dtype, scale, plain
        self.embedded = embeddings is not None
        for axis, linears in zip(("down", "across"), embeddings or (), strict=False):
            for order, linear in zip(("first", "second"), linears, strict=True):
                self.register_buffer(f"{axis}_{order}", linear.weight.contiguous())
                self.register_buffer(f"{axis}_{order}_bias", linear.bias)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, down: Tensor, across: Tensor) -> Tensor:
        """Attend from (B, H, plain + Q, D) to (B, H, height * width, D).

        ``down`` is (B, H, Q, height), ``across`` (B, H, Q, width), rounded to half here: in it the
        layers that compute them give them anyway. With embeddings they are what those read,
        (B, Q, height, 2) and (B, Q, width, 2).
        """
        q, k, v = for_kernel(q, k, v, self.dtype)
        scale = q.shape[-1] ** -0.5 if self.scale is None else self.scale
        if self.embedded:
            edges = self._edges(down, across)
            height, width = down.shape[2], across.shape[2]
        else:
            edges = edges_from_bias(down, across, self.plain, self.dtype)
            height, width = down.shape[-1], across.shape[-1]
        attended: Tensor = attend_grid(q, k, v, edges, height, width, scale)
        return attended.transpose(1, 2)

    def _edges(self, rows: Tensor, columns: Tensor) -> Tensor:
        weights = [
            getattr(self, f"{axis}_{order}{suffix}")
            for axis in ("down", "across")
            for order in ("first", "second")
            for suffix in ("", "_bias")
        ]
        edges: Tensor = embed_edges(rows.contiguous(), columns.contiguous(), *weights, self.plain)
        return edges
