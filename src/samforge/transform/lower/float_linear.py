"""Small linears whose operands stay float32: heads that boxes and scores are read off.

cuBLAS runs 200 rows by 256 x 256 in float32 on the ordinary cores, with ReLU in 8 us on an H100, by
512 x 256 in 22. Here the tensor cores multiply each operand in three TF32 pieces, which keeps
float32's precision (3xTF32: CUTLASS, examples/27_ampere_3xtf32): 4 and 6 us.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from samforge.core.triton_here import HAS_TRITON
from samforge.transform.lower.linear import TypedLinear

ROWS = 16
"""Rows of a program."""
COLUMNS = 32
"""Outputs of a program: 200 rows and 256 outputs make 104 programs."""
DEPTH = 64
"""Inputs at a time."""
MOST_INPUTS = 512
"""Beyond it, cuBLAS splits a sum over programs: 2,048 inputs take this kernel 19 us on an H100."""


def float_linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    """Compute ``x @ weight^T + bias`` in float32, with ReLU if asked for.

    Args:
        x: (M, K), float32 or half.
        weight: (N, K), float32.
        bias: (N,), float32, or None.
        relu: Whether negative results become zero.

    Returns:
        (M, N), float32.
    """
    result = F.linear(x.float(), weight, bias)
    return result.relu() if relu else result


if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _float_linear(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
        x_ptr, weight_ptr, bias_ptr, out_ptr, count, outputs, x_row,
        inputs: tl.constexpr, biased: tl.constexpr, relu: tl.constexpr,
        rows: tl.constexpr, columns: tl.constexpr, depth: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0) * rows + tl.arange(0, rows)
        column = tl.program_id(1) * columns + tl.arange(0, columns)
        inside, there = (row < count)[:, None], (column < outputs)[:, None]
        x_at = x_ptr + row.to(tl.int64)[:, None] * x_row
        weight_at = weight_ptr + column[:, None] * inputs
        total = tl.zeros((rows, columns), tl.float32)
        for start in range(0, inputs, depth):
            place = (start + tl.arange(0, depth))[None, :]
            deep = place < inputs
            x = tl.load(x_at + place, mask=inside & deep, other=0.0).to(tl.float32)
            weight = tl.load(weight_at + place, mask=there & deep, other=0.0)
            total = tl.dot(x, weight.T, total, input_precision="tf32x3")
        if biased:
            total += tl.load(bias_ptr + column, mask=column < outputs, other=0.0)[None, :]
        if relu:
            total = tl.maximum(total, 0.0)
        out_at = out_ptr + row.to(tl.int64)[:, None] * outputs + column[None, :]
        tl.store(out_at, total, mask=inside & (column < outputs)[None, :])

    @torch.library.triton_op("samforge::float_linear", mutates_args={})
    def float_linear(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
        """See :func:`float_linear_reference`."""
        count, (outputs, inputs) = x.shape[0], weight.shape
        out = torch.empty((count, outputs), dtype=torch.float32, device=x.device)

        def grid(meta: dict[str, Any]) -> tuple[Any, ...]:
            return (triton.cdiv(count, meta["rows"]), triton.cdiv(outputs, meta["columns"]))

        torch.library.wrap_triton(_float_linear)[grid](
            x, weight, weight if bias is None else bias, out, count, outputs, x.stride(0),
            inputs=inputs, biased=bias is not None, relu=relu,
            rows=ROWS, columns=COLUMNS, depth=DEPTH, num_warps=4, num_stages=4,
        )  # fmt: skip
        return out

    float_linear.register_kernel("cpu")(float_linear_reference)
else:
    float_linear = float_linear_reference


class FloatLinear(TypedLinear):
    """A linear in float32 whose input may be half, with ReLU if something asks for it."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight.contiguous(), bias, torch.float32)
        self.relu = False
        """Whether :meth:`forward` ends in ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute ``x @ weight^T + bias`` of (..., K) in float32."""
        rows = x.reshape(-1, x.shape[-1])
        rows = rows if rows.stride(-1) == 1 else rows.contiguous()
        result: Tensor = float_linear(rows, self.weight, self.bias, self.relu)
        return result.view(*x.shape[:-1], -1)
