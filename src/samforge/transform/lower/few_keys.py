"""Attention to a few keys with one bias for each: image tokens that read a phrase.

As two products with softmax between them this is four kernels and 15 us a layer (5,184 queries, 32
keys, 8 heads, H100), most of it scores on their way to memory and back. Here no score leaves the
chip.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from samforge.core.triton_here import HAS_TRITON
from samforge.transform.lower.attention import for_kernel

FEW_KEYS = 64
"""Beyond it, keys are streamed."""
ROWS = 64
"""Queries of a program."""


def attend_few_reference(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Attend from (B, H, T, D) to (B, H, L, D).

    Args:
        q: Query.
        k: Key.
        v: Value.
        bias: (B, L), float, added to the scores of every head and query.
        scale: Of the scores, before the bias is added.

    Returns:
        (B, T, H, D): heads of a token together, as the projection behind it reads them.
    """
    scores = torch.matmul(q.float(), k.float().transpose(-2, -1)) * scale
    share = (scores + bias.float()[:, None, None]).softmax(-1).to(v.dtype)
    return torch.matmul(share, v).transpose(1, 2).contiguous()


if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _attend_few(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
        q_ptr, k_ptr, v_ptr, bias_ptr, out_ptr, tokens, heads,
        q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, bias_batch,
        scale: tl.constexpr, log2e: tl.constexpr, length: tl.constexpr, keys: tl.constexpr,
        odd: tl.constexpr, size: tl.constexpr, rows: tl.constexpr,
    ):  # fmt: skip
        """A stretch of queries of one head: ``keys`` of them in tiles, and an odd one by itself.

        A phrase has 32 tokens and the class token behind them: a tile of 64 would be half empty.
        """
        group = tl.program_id(1)
        batch, head = (group // heads).to(tl.int64), group % heads
        row = tl.program_id(0) * rows + tl.arange(0, rows)
        column, key = tl.arange(0, size), tl.arange(0, keys)
        tiled: tl.constexpr = length - 1 if odd else length
        inside, there = (row < tokens)[:, None], (key < tiled)[:, None]
        q_ptr += batch * q_batch + head * q_head
        k_ptr += batch * k_batch + head * k_head
        v_ptr += batch * v_batch + head * v_head
        q = tl.load(q_ptr + row[:, None] * q_row + column[None, :], mask=inside, other=0.0)
        k = tl.load(k_ptr + key[:, None] * k_row + column[None, :], mask=there, other=0.0)
        v = tl.load(v_ptr + key[:, None] * v_row + column[None, :], mask=there, other=0.0)
        bias = tl.load(bias_ptr + batch * bias_batch + key, mask=key < tiled, other=-1e30)
        scores = tl.dot(q, k.T) * scale + bias.to(tl.float32)[None, :]
        largest = tl.max(scores, 1)
        if odd:
            last = tl.load(k_ptr + (length - 1) * k_row + column).to(tl.float32)
            beside = tl.load(bias_ptr + batch * bias_batch + length - 1).to(tl.float32)
            score = tl.sum(q.to(tl.float32) * last[None, :], 1) * scale + beside
            largest = tl.maximum(largest, score)
        share = tl.exp2((scores - largest[:, None]) * log2e)
        total, result = tl.sum(share, 1), tl.dot(share.to(v_ptr.dtype.element_ty), v)
        if odd:
            own = tl.exp2((score - largest) * log2e)
            last = tl.load(v_ptr + (length - 1) * v_row + column).to(tl.float32)
            total, result = total + own, result + own[:, None] * last[None, :]
        result = result / total[:, None]
        out_at = out_ptr + (batch * tokens * heads + head) * size
        out_at = out_at + row[:, None] * (heads * size) + column[None, :]
        tl.store(out_at, result.to(out_ptr.dtype.element_ty), mask=inside)

    @torch.library.triton_op("samforge::attend_few", mutates_args={})
    def attend_few(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
        """See :func:`attend_few_reference`."""
        batch, heads, tokens, size = q.shape
        length = k.shape[2]
        out = torch.empty((batch, tokens, heads, size), dtype=q.dtype, device=q.device)

        odd = length > 16 and length - 1 == triton.next_power_of_2(length - 1)

        def grid(meta: dict[str, Any]) -> tuple[Any, ...]:
            return (triton.cdiv(tokens, meta["rows"]), batch * heads)

        torch.library.wrap_triton(_attend_few)[grid](
            q, k, v, bias, out, tokens, heads,
            q.stride(0), q.stride(1), q.stride(2), k.stride(0), k.stride(1), k.stride(2),
            v.stride(0), v.stride(1), v.stride(2), bias.stride(0),
            scale=scale, log2e=math.log2(math.e), length=length,
            keys=max(16, triton.next_power_of_2(length - 1 if odd else length)), odd=odd,
            size=size, rows=ROWS, num_warps=4,
        )  # fmt: skip
        return out

    attend_few.register_kernel("cpu")(attend_few_reference)
else:
    attend_few = attend_few_reference


class FewKeysAttention(nn.Module):
    """Attention to a few keys, each of which has a bias of its own."""

    def __init__(self, dtype: torch.dtype, scale: float | None) -> None:
        """Take over an operator's settings.

        Args:
            dtype: Of query, key and value: half.
            scale: Of the scores; None takes one over the square root of the head size.
        """
        super().__init__()
        self.dtype, self.scale = dtype, scale

    def forward(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """Attend from (B, H, T, D) to (B, H, L, D); the bias is (B or 1, 1, 1, L)."""
        q, k, v = for_kernel(q, k, v, self.dtype)
        scale = q.shape[-1] ** -0.5 if self.scale is None else self.scale
        each = bias.expand(q.shape[0], 1, 1, k.shape[2]).reshape(q.shape[0], -1).contiguous()
        attended: Tensor = attend_few(q, k, v, each, scale)
        return attended.transpose(1, 2)


def biases_few_keys(mask: Any, key: Node) -> bool:
    """Whether a mask is one float for each of a few keys, whatever the head and the query."""
    if not isinstance(mask, Node):
        return False
    value: Tensor = mask.meta["val"]
    keys, size = key.meta["val"].shape[-2:]
    return (
        value.is_floating_point()
        and value.ndim == 4
        and all(isinstance(axis, int) and axis == 1 for axis in value.shape[1:3])
        and isinstance(keys, int)
        and keys <= FEW_KEYS
        and size >= 16
        and size & (size - 1) == 0
    )
