"""GELU with the hardware's tanh, as operators of torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from samforge.core.triton_here import HAS_TRITON
from samforge.transform.lower.e4m3 import E4M3, E4M3_MAX
from samforge.transform.lower.gelu import COEFFICIENTS, fast_gelu


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

    gelu_to_e4m3.register_kernel("cpu")(gelu_to_e4m3_reference)
    gelu_half.register_kernel("cpu")(gelu_half_reference)
else:
    gelu_to_e4m3, gelu_half = gelu_to_e4m3_reference, gelu_half_reference
