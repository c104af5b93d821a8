"""Attention without a mask as one Triton kernel, which may turn queries by their positions.

Keys are read once for every block of queries, so they are turned before, in a kernel of their own.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samforge.core.triton_here import HAS_TRITON
from samforge.transform.lower.attention import for_kernel
from samforge.transform.lower.e4m3 import E4M3
from samforge.transform.lower.linear import quantized

TURNED_TOKENS = 4
"""Tokens of a program that turns keys."""


def attend_reference(  # noqa: PLR0913, PLR0917  # as the operator takes them
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    inverse: Tensor | None = None,
) -> Tensor:
    """Attend from (B, H, T, D) to (B, H, T, D).

    Args:
        q: Query, before its rotary encoding where ``cos`` and ``sin`` are given.
        k: Key.
        v: Value.
        scale: Of the scores.
        cos: (T, D / 2), float32: each pair of neighbours of a query turns by its angle.
        sin: (T, D / 2), float32.
        inverse: (1,), float32: one over the scale of a result in E4M3; None gives it in half.

    Returns:
        (B, T, H, D): heads of a token together, as the projection behind it reads them.
    """
    if cos is not None and sin is not None:
        q = rotated_pairs(q, cos, sin)
    attended = F.scaled_dot_product_attention(q, k, v, scale=scale)
    attended = attended.transpose(1, 2).contiguous()
    return attended if inverse is None else quantized(attended, inverse)


def rotated_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of neighbours in (..., T, D) by an angle: rotary encoding (arXiv:2104.09864).

    Computed in float32 and rounded once.
    """
    even, odd = x.float().reshape(*x.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1)
    return turned.flatten(-2).to(x.dtype)


def turned_reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """:func:`rotated_pairs` of (B, H, T, D), the heads of a token side by side in memory."""
    return rotated_pairs(x, cos, sin).transpose(1, 2).contiguous().transpose(1, 2)


if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _turn(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
        x_ptr, cos_ptr, sin_ptr, out_ptr, count, tokens, x_batch, x_head, x_row,
        heads: tl.constexpr, size: tl.constexpr, rows: tl.constexpr, block: tl.constexpr,
    ):  # fmt: skip
        """All heads of some tokens."""
        row = tl.program_id(0) * rows + tl.arange(0, rows)
        token, batch = row % tokens, (row // tokens).to(tl.int64)
        value = tl.arange(0, block)
        mask = (row < count)[:, None] & (value < heads * size)[None, :]
        x_at = x_ptr + (batch * x_batch + token * x_row)[:, None]
        x_at = x_at + (value // size * x_head + value % size)[None, :]
        x = tl.load(x_at, mask=mask, other=0.0).to(tl.float32)
        pair = tl.arange(0, block // 2) % (size // 2)
        angle = token[:, None] * (size // 2) + pair[None, :]
        cos, sin = tl.load(cos_ptr + angle), tl.load(sin_ptr + angle)
        first, second = tl.split(tl.reshape(x, (rows, block // 2, 2)))
        x = tl.join(first * cos - second * sin, second * cos + first * sin)
        x = tl.reshape(x, (rows, block)).to(out_ptr.dtype.element_ty)
        out_at = out_ptr + row.to(tl.int64)[:, None] * (heads * size) + value[None, :]
        tl.store(out_at, x, mask=mask)

    @torch.library.triton_op("samforge::turned", mutates_args={})
    def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """See :func:`turned_reference`."""
        batch, heads, tokens, size = x.shape
        out = torch.empty((batch, tokens, heads, size), dtype=x.dtype, device=x.device)

        def grid(meta: dict[str, Any]) -> tuple[Any, ...]:
            return (triton.cdiv(batch * tokens, meta["rows"]),)

        torch.library.wrap_triton(_turn)[grid](
            x, cos, sin, out, batch * tokens, tokens, x.stride(0), x.stride(1), x.stride(2),
            heads=heads, size=size, rows=TURNED_TOKENS,
            block=triton.next_power_of_2(heads * size), num_warps=4,
        )  # fmt: skip
        return out.transpose(1, 2)

    turned.register_kernel("cpu")(turned_reference)

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _attend(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0915, PLR0917
        q_ptr, k_ptr, v_ptr, out_ptr, cos_ptr, sin_ptr, inverse_ptr, tokens, heads,
        q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
        scale: tl.constexpr, size: tl.constexpr, turn: tl.constexpr, rows: tl.constexpr,
        keys: tl.constexpr, even: tl.constexpr, known: tl.constexpr, quantize: tl.constexpr,
    ):  # fmt: skip
        """Streaming softmax over blocks of keys (FlashAttention-2, arXiv:2307.08691).

        ``known`` is the number of tokens as a constant, or 0. With a loop that might not run at
        all, ptxas leaves no product of the tensor cores in flight (its warning C7515).
        """
        end = known if known > 0 else tokens
        group = tl.program_id(1)
        batch, head = (group // heads).to(tl.int64), group % heads
        row = tl.program_id(0) * rows + tl.arange(0, rows)
        column = tl.arange(0, size)
        q_ptr += batch * q_batch + head * q_head
        k_ptr += batch * k_batch + head * k_head
        v_ptr += batch * v_batch + head * v_head
        inside = (row < tokens)[:, None]
        q = tl.load(q_ptr + row[:, None] * q_row + column[None, :], mask=inside, other=0.0)
        q = q.to(tl.float32)
        if turn:
            pair = row[:, None] * (size // 2) + tl.arange(0, size // 2)[None, :]
            cos = tl.load(cos_ptr + pair, mask=inside, other=0.0)
            sin = tl.load(sin_ptr + pair, mask=inside, other=0.0)
            first, second = tl.split(tl.reshape(q, (rows, size // 2, 2)))
            q = tl.join(first * cos - second * sin, second * cos + first * sin)
            q = tl.reshape(q, (rows, size)).to(q_ptr.dtype.element_ty).to(tl.float32)
        q = (q * scale).to(q_ptr.dtype.element_ty)
        most = tl.full((rows,), -1e30, tl.float32)
        total = tl.zeros((rows,), tl.float32)
        result = tl.zeros((rows, size), tl.float32)
        for start in range(0, end, keys):
            key = start + tl.arange(0, keys)
            k_at = k_ptr + key[:, None] * k_row + column[None, :]
            v_at = v_ptr + key[:, None] * v_row + column[None, :]
            if even:
                k = tl.load(k_at)
                v = tl.load(v_at)
                scores = tl.dot(q, k.T)
            else:
                valid = (key < tokens)[:, None]
                k = tl.load(k_at, mask=valid, other=0.0)
                v = tl.load(v_at, mask=valid, other=0.0)
                scores = tl.where((key < tokens)[None, :], tl.dot(q, k.T), -1e30)
            peak = tl.maximum(most, tl.max(scores, 1))
            share = tl.exp2(scores - peak[:, None])
            shrink = tl.exp2(most - peak)
            # The product before the sum: in this order a thread needs 127 registers, four programs
            # fit on a multiprocessor, and windows take 41 us; in the other 134, three, and 45.
            result = result * shrink[:, None]
            result = tl.dot(share.to(v_ptr.dtype.element_ty), v, result)
            total = total * shrink + tl.sum(share, 1)
            most = peak
        out_ptr += (batch * tokens * heads + head) * size
        if quantize:
            result = result * (tl.load(inverse_ptr) / total)[:, None]
            result = tl.minimum(tl.maximum(result, -448.0), 448.0).to(tl.float8e4nv)
            # In another shape: Triton lays out all accesses of one shape alike, and keys read in
            # stretches of 16 values, as E4M3 is written, cost a quarter of the kernel's time.
            result = tl.reshape(result, (rows, 2, size // 2))
            value = tl.arange(0, 2)[:, None] * (size // 2) + tl.arange(0, size // 2)[None, :]
            out_at = out_ptr + (row * (heads * size))[:, None, None] + value[None, :, :]
            tl.store(out_at, result, mask=(row < tokens)[:, None, None])
        else:
            result = (result / total[:, None]).to(out_ptr.dtype.element_ty)
            out_at = out_ptr + row[:, None] * (heads * size) + column[None, :]
            tl.store(out_at, result, mask=inside)

    @torch.library.triton_op("samforge::attend", mutates_args={})
    def attend(  # noqa: PLR0913, PLR0917
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        cos: Tensor | None = None,
        sin: Tensor | None = None,
        inverse: Tensor | None = None,
    ) -> Tensor:
        """See :func:`attend_reference`."""
        batch, heads, tokens, size = q.shape
        dtype = q.dtype if inverse is None else E4M3
        out = torch.empty((batch, tokens, heads, size), dtype=dtype, device=q.device)

        def grid(meta: dict[str, Any]) -> tuple[Any, ...]:
            return (triton.cdiv(tokens, meta["rows"]), batch * heads)

        torch.library.wrap_triton(_attend)[grid](
            q, k, v, out,
            # A kernel takes no None; what it does not read may be anything.
            q if cos is None else cos, q if sin is None else sin,
            q if inverse is None else inverse, tokens, heads,
            q.stride(0), q.stride(1), q.stride(2), k.stride(0), k.stride(1), k.stride(2),
            v.stride(0), v.stride(1), v.stride(2),
            scale=scale * math.log2(math.e), size=size, turn=cos is not None, rows=64,
            # At head size 32 products in flight take 98 registers instead of 80, so that four
            # programs fit instead of six: 113 us against 102.
            keys=64, even=tokens % 64 == 0, known=tokens if size > 32 else 0,
            quantize=inverse is not None, num_warps=4, num_stages=3,
        )  # fmt: skip
        return out

    attend.register_kernel("cpu")(attend_reference)
else:
    attend, turned = attend_reference, turned_reference


class StreamedAttention(nn.Module):
    """Attention by the Triton kernel, with the rotary encoding of queries and of keys."""

    cos: Tensor | None
    sin: Tensor | None
    key_cos: Tensor | None
    key_sin: Tensor | None
    inverse: Tensor | None

    def __init__(
        self,
        dtype: torch.dtype,
        scale: float | None,
        turn: tuple[Tensor, Tensor] | None,
        key_turn: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Take over what surrounds the kernel.

        Args:
            dtype: Of query, key and value.
            scale: Of the scores; None takes one over the square root of the head size.
            turn: Cosine and sine (T, D / 2) by which the query is still to be turned.
            key_turn: The same for the key.
        """
        super().__init__()
        self.dtype, self.scale = dtype, scale
        self.register_buffer("cos", None if turn is None else turn[0])
        self.register_buffer("sin", None if turn is None else turn[1])
        self.register_buffer("key_cos", None if key_turn is None else key_turn[0])
        self.register_buffer("key_sin", None if key_turn is None else key_turn[1])
        self.register_buffer("inverse", None)

    def quantize(self, inverse: float) -> None:
        """Give results in E4M3 from now on, for the linear behind that has this inverse scale."""
        self.register_buffer("inverse", torch.tensor([inverse]))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from (B, H, T, D) to (B, H, T, D)."""
        q, k, v = for_kernel(q, k, v, self.dtype)
        if self.key_cos is not None and self.key_sin is not None:
            k = turned(k, self.key_cos, self.key_sin)
        scale = q.shape[-1] ** -0.5 if self.scale is None else self.scale
        attended: Tensor = attend(q, k, v, scale, self.cos, self.sin, self.inverse)
        return attended.transpose(1, 2)


def suits_streaming(q: Tensor, k: Tensor) -> bool:
    """Whether the Triton kernel is the faster one for a shape, known while tracing.

    On an H100 it takes 102 us for 5184 tokens and 8 heads of 32, where cuDNN takes 159, and 260 for
    16 heads of 64, as cuDNN does, which turns no queries and quantizes nothing.
    """
    tokens = q.shape[-2]
    if not isinstance(tokens, int) or tokens != k.shape[-2]:
        return False
    return bool(q.shape[-1] == 32 or (q.shape[-1] == 64 and tokens % 64 == 0))
