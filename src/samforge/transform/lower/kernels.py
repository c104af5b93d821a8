"""Triton kernels that beat Inductor's and cuDNN's by a measured margin, as operators of torch.

Each has its meaning in plain torch beside it: that runs on processors, and tests hold the kernel
to it. Figures: docs/gpu.md.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from samforge.transform.lower.activation import COEFFICIENTS, fast_gelu
from samforge.transform.lower.linear import E4M3, E4M3_MAX, quantized

HAS_TRITON = find_spec("triton") is not None
SUM_ROWS = 2
"""Rows of a program: the vectors of a LayerNorm and of scales are read once for all of them."""


def gelu_to_e4m3_reference(product: Tensor, scale: Tensor, bias: Tensor, inverse: Tensor) -> Tensor:
    """Scale and shift columns, apply GELU, quantize.

    Args:
        product: (M, N), half.
        scale: (N,), float32.
        bias: (N,), float32.
        inverse: (1,), float32: one over the scale of the result.

    Returns:
        (M, N), E4M3.
    """
    value = fast_gelu(product.float() * scale + bias)
    return (value * inverse).clamp(-E4M3_MAX, E4M3_MAX).to(E4M3)


def gelu_half_reference(value: Tensor) -> Tensor:
    """GELU of (M, N) in half, rounded once."""
    return fast_gelu(value.float()).to(value.dtype)


def attend_reference(  # as the operator takes them
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
) -> Tensor:
    """Attend from (B, H, T, D) to (B, H, T, D).

    Args:
        q: Query, before its rotary encoding where ``cos`` and ``sin`` are given.
        k: Key.
        v: Value.
        scale: Of the scores.
        cos: (T, D / 2), float32: each pair of neighbours of a query turns by its angle.
        sin: (T, D / 2), float32.

    Returns:
        (B, T, H, D): heads of a token together, as the projection behind it reads them.
    """
    if cos is not None and sin is not None:
        q = rotated_pairs(q, cos, sin)
    attended = F.scaled_dot_product_attention(q, k, v, scale=scale)
    return attended.transpose(1, 2).contiguous()


def rotated_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of neighbours in (..., T, D) by an angle: rotary encoding (arXiv:2104.09864).

    Computed in float32 and rounded once.
    """
    even, odd = x.float().reshape(*x.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1)
    return turned.flatten(-2).to(x.dtype)


def sum_norm_reference(  # noqa: PLR0913, PLR0917  # as the operator takes them
    residual: Tensor,
    product: Tensor,
    weight: Tensor,
    shift: Tensor,
    epsilon: float,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    inverse: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Add a branch to a residual stream and normalize the sum, in one pass.

    Args:
        residual: (M, C).
        product: (M, C), half: the branch, before its scales and bias where these are given.
        weight: (C,), float32, of the LayerNorm.
        shift: (C,), float32, its bias.
        epsilon: Added to the variance.
        scale: (C,), float32, times which the branch is the product.
        bias: (C,), float32, of the branch.
        inverse: (1,), float32: one over the scale of a normalized result in E4M3.

    Returns:
        The sum (M, C) in the residual's type, and the normalized sum (M, C) in the product's type
        or in E4M3.
    """
    branch = product.float()
    if scale is not None and bias is not None:
        branch = branch * scale + bias
    total = residual.float() + branch
    normed = F.layer_norm(total, (total.shape[-1],), weight, shift, epsilon)
    normed = normed.to(product.dtype) if inverse is None else quantized(normed, inverse)
    return total.to(residual.dtype), normed


if HAS_TRITON:
    import triton
    import triton.language as tl

    _A, _B, _C = (value / 2 for value in COEFFICIENTS)

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _gelu_to_e4m3(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
        product_ptr, scale_ptr, bias_ptr, inverse_ptr, out_ptr, rows, columns,
        a: tl.constexpr, b: tl.constexpr, c: tl.constexpr,
        block_rows: tl.constexpr, block_columns: tl.constexpr,
    ):  # fmt: skip
        column = tl.program_id(1) * block_columns + tl.arange(0, block_columns)
        row = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
        inside = column < columns
        scale = tl.load(scale_ptr + column, mask=inside, other=0.0)
        bias = tl.load(bias_ptr + column, mask=inside, other=0.0)
        inverse = tl.load(inverse_ptr)
        place = row[:, None].to(tl.int64) * columns + column[None, :]
        mask = (row < rows)[:, None] & inside[None, :]
        value = tl.load(product_ptr + place, mask=mask, other=0.0).to(tl.float32)
        value = value * scale[None, :] + bias[None, :]
        near = tl.minimum(tl.maximum(value, -6.0), 6.0)
        square = near * near
        # sigmoid(p) is (1 + tanh(p / 2)) / 2; the coefficients are halved already. The hardware's
        # tanh is within 5e-4: a hundredth of E4M3's step.
        turned = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [near * (a + square * (b + square * c))],
            dtype=tl.float32, is_pure=True, pack=1,
        )  # fmt: skip
        value = 0.5 * value
        value = (value + value * turned) * inverse
        value = tl.minimum(tl.maximum(value, -448.0), 448.0)
        tl.store(out_ptr + place, value.to(tl.float8e4nv), mask=mask)

    @torch.library.triton_op("samforge::gelu_to_e4m3", mutates_args={})
    def gelu_to_e4m3(product: Tensor, scale: Tensor, bias: Tensor, inverse: Tensor) -> Tensor:
        """See :func:`gelu_to_e4m3_reference`."""
        rows, columns = product.shape
        out = torch.empty_like(product, dtype=torch.float8_e4m3fn)

        def grid(meta: dict[str, Any]) -> tuple[Any, ...]:
            return (
                triton.cdiv(rows, meta["block_rows"]),
                triton.cdiv(columns, meta["block_columns"]),
            )

        torch.library.wrap_triton(_gelu_to_e4m3)[grid](
            product, scale, bias, inverse, out, rows, columns,
            a=_A, b=_B, c=_C, block_rows=32, block_columns=128,
        )  # fmt: skip
        return out

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _gelu_half(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
        value_ptr, out_ptr, count, a: tl.constexpr, b: tl.constexpr, c: tl.constexpr,
        block: tl.constexpr,
    ):  # fmt: skip
        place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
        value = tl.load(value_ptr + place, mask=place < count, other=0.0).to(tl.float32)
        near = tl.minimum(tl.maximum(value, -6.0), 6.0)
        square = near * near
        turned = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [near * (a + square * (b + square * c))],
            dtype=tl.float32, is_pure=True, pack=1,
        )  # fmt: skip
        value = 0.5 * value
        result = (value + value * turned).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + place, result, mask=place < count)

    @torch.library.triton_op("samforge::gelu_half", mutates_args={})
    def gelu_half(value: Tensor) -> Tensor:
        """See :func:`gelu_half_reference`."""
        out = torch.empty_like(value)
        count = value.numel()

        def grid(meta: dict[str, Any]) -> tuple[Any, ...]:
            return (triton.cdiv(count, meta["block"]),)

        torch.library.wrap_triton(_gelu_half)[grid](value, out, count, a=_A, b=_B, c=_C, block=4096)
        return out

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _attend(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
        q_ptr, k_ptr, v_ptr, out_ptr, cos_ptr, sin_ptr, tokens, heads,
        q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row,
        scale: tl.constexpr, size: tl.constexpr, even: tl.constexpr,
        turn: tl.constexpr, rows: tl.constexpr, keys: tl.constexpr,
    ):  # fmt: skip
        """Streaming softmax over blocks of keys (FlashAttention-2, arXiv:2307.08691)."""
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
        for start in range(0, tokens, keys):
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
            total = total * shrink + tl.sum(share, 1)
            result = tl.dot(share.to(v_ptr.dtype.element_ty), v, result * shrink[:, None])
            most = peak
        result = result / total[:, None]
        out_ptr += (batch * tokens * heads + head) * size
        tl.store(
            out_ptr + row[:, None] * (heads * size) + column[None, :],
            result.to(out_ptr.dtype.element_ty), mask=inside,
        )  # fmt: skip

    @torch.library.triton_op("samforge::attend", mutates_args={})
    def attend(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        cos: Tensor | None = None,
        sin: Tensor | None = None,
    ) -> Tensor:
        """See :func:`attend_reference`."""
        batch, heads, tokens, size = q.shape
        out = torch.empty((batch, tokens, heads, size), dtype=q.dtype, device=q.device)

        def grid(meta: dict[str, Any]) -> tuple[Any, ...]:
            return (triton.cdiv(tokens, meta["rows"]), batch * heads)

        torch.library.wrap_triton(_attend)[grid](
            q, k, v, out,
            # A kernel takes no None; what it does not read may be anything.
            q if cos is None else cos, q if sin is None else sin, tokens, heads,
            q.stride(0), q.stride(1), q.stride(2), k.stride(0), k.stride(1), k.stride(2),
            v.stride(0), v.stride(1), v.stride(2),
            scale=scale * math.log2(math.e), size=size, even=tokens % 64 == 0,
            turn=cos is not None, rows=64, keys=64, num_warps=4, num_stages=3,
        )  # fmt: skip
        return out

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _sum_norm(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
        residual_ptr, product_ptr, weight_ptr, shift_ptr, scale_ptr, bias_ptr, inverse_ptr,
        total_ptr, normed_ptr, rows, columns,
        epsilon: tl.constexpr, scaled: tl.constexpr, quantize: tl.constexpr,
        block: tl.constexpr, each: tl.constexpr,
    ):  # fmt: skip
        column = tl.arange(0, block)
        inside = column < columns
        weight = tl.load(weight_ptr + column, mask=inside, other=0.0)
        shift = tl.load(shift_ptr + column, mask=inside, other=0.0)
        if scaled:
            scale = tl.load(scale_ptr + column, mask=inside, other=0.0)
            bias = tl.load(bias_ptr + column, mask=inside, other=0.0)
        if quantize:
            inverse = tl.load(inverse_ptr)
        for index in range(each):
            row = tl.program_id(0) * each + index
            place = row.to(tl.int64) * columns + column
            mask = inside & (row < rows)
            total = tl.load(residual_ptr + place, mask=mask, other=0.0).to(tl.float32)
            branch = tl.load(product_ptr + place, mask=mask, other=0.0).to(tl.float32)
            if scaled:
                branch = branch * scale + bias
            total += branch
            tl.store(total_ptr + place, total.to(total_ptr.dtype.element_ty), mask=mask)
            centred = tl.where(inside, total - tl.sum(total, 0) / columns, 0.0)
            variance = tl.sum(centred * centred, 0) / columns
            normed = centred * tl.rsqrt(variance + epsilon) * weight + shift
            if quantize:
                normed = tl.minimum(tl.maximum(normed * inverse, -448.0), 448.0)
            tl.store(normed_ptr + place, normed.to(normed_ptr.dtype.element_ty), mask=mask)

    @torch.library.triton_op("samforge::sum_norm", mutates_args={})
    def sum_norm(  # noqa: PLR0913, PLR0917
        residual: Tensor,
        product: Tensor,
        weight: Tensor,
        shift: Tensor,
        epsilon: float,
        scale: Tensor | None = None,
        bias: Tensor | None = None,
        inverse: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See :func:`sum_norm_reference`."""
        rows, columns = residual.shape
        total = torch.empty_like(residual)
        normed = torch.empty_like(product, dtype=product.dtype if inverse is None else E4M3)

        def grid(meta: dict[str, Any]) -> tuple[Any, ...]:
            return (triton.cdiv(rows, meta["each"]),)

        torch.library.wrap_triton(_sum_norm)[grid](
            residual, product, weight, shift,
            weight if scale is None else scale, weight if bias is None else bias,
            weight if inverse is None else inverse,
            total, normed, rows, columns,
            # A constant: Inductor passes a number as float64, which has no rsqrt.
            epsilon=epsilon, scaled=scale is not None, quantize=inverse is not None,
            block=triton.next_power_of_2(columns), each=SUM_ROWS, num_warps=4,
        )  # fmt: skip
        return total, normed

    gelu_to_e4m3.register_kernel("cpu")(gelu_to_e4m3_reference)
    gelu_half.register_kernel("cpu")(gelu_half_reference)
    attend.register_kernel("cpu")(attend_reference)
    sum_norm.register_kernel("cpu")(sum_norm_reference)
else:
    gelu_to_e4m3, gelu_half = gelu_to_e4m3_reference, gelu_half_reference
    attend, sum_norm = attend_reference, sum_norm_reference
