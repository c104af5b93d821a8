"""Linear layers in half and in FP8."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samforge.transform.lower.e4m3 import E4M3, E4M3_MAX
from samforge.transform.lower.gelu_kernels import gelu_to_e4m3

ALIGNMENT = 16
"""Matrix products on FP8 tensor cores want both sides of a weight in multiples of it."""


class TypedLinear(nn.Module):
    """A linear whose operands have one type, whatever type its input comes in."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.register_buffer("weight", weight.to(dtype))
        self.register_buffer("bias", None if bias is None else bias.to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Compute ``x @ weight^T + bias`` of (..., K) in this layer's type."""
        return F.linear(x.to(self.dtype), self.weight, self.bias)


class Fp8Linear(nn.Module):
    """A linear with E4M3 operands, static scales and fp32 accumulation.

    The product itself is unscaled; activation scale, weight scale and bias are one multiply-add on
    its result, which Inductor fuses into whatever reads it. So a scale for every output channel
    costs nothing, and the fast kernel for unscaled products serves.
    """

    weight: Tensor
    scale: Tensor
    one: Tensor
    bias: Tensor | None
    half_bias: Tensor | None

    def __init__(
        self, weight: Tensor, bias: Tensor | None, scale: float, dtype: torch.dtype, per: str
    ) -> None:
        """Quantize the weight.

        Args:
            weight: (N, K).
            bias: (N,) or None.
            scale: Of the input: its largest value over 448.
            dtype: Of the result.
            per: ``channel`` or ``tensor``: what one weight scale covers.
        """
        super().__init__()
        self.dtype = dtype
        self.inverse = 1.0 / scale
        peak = weight.abs().amax(1) if per == "channel" else weight.abs().max().expand(len(weight))
        weight_scale = (peak / E4M3_MAX).clamp(min=torch.finfo(torch.float32).tiny)
        self.register_buffer("weight", quantized(weight, 1.0 / weight_scale[:, None]))
        self.register_buffer("scale", (weight_scale * scale).contiguous())
        self.register_buffer("bias", bias)
        # Converted once: in the graph it would be a kernel a layer, 1.6 us each on an H100.
        self.register_buffer("half_bias", None if bias is None else bias.to(dtype))
        self.register_buffer("one", torch.ones((), device=weight.device))
        # Scaling inside the product is as fast where there are more outputs than inputs (32 us
        # either way for q, k and v on an H200) and slower where there are fewer (45 against 35).
        self.inside = weight.shape[0] > weight.shape[1]
        self.raw = False
        """Whether :meth:`forward` leaves scales and bias to whatever reads its product."""

    def product(self, quantized_input: Tensor) -> Tensor:
        """Multiply (M, K) in E4M3 with the weight, unscaled."""
        return torch._scaled_mm(  # noqa: SLF001  # the only door to FP8 products in torch
            quantized_input,
            self.weight.t(),
            scale_a=self.one,
            scale_b=self.one,
            out_dtype=self.dtype,
            use_fast_accum=True,
        )

    def scaled(self, product: Tensor) -> Tensor:
        """Apply scales and bias to a product."""
        result = product.float() * self.scale
        if self.bias is not None:
            result = result + self.bias
        return result.to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Compute ``x @ weight^T + bias`` of (..., K), which may be quantized already."""
        values = as_operand(x, self.inverse)
        if self.inside and not self.raw:
            return self.scaled_inside(values).view(*x.shape[:-1], -1)
        return self.finished(self.product(values)).view(*x.shape[:-1], -1)

    def finished(self, product: Tensor) -> Tensor:
        """Scale a product, unless its reader does."""
        return product if self.raw else self.scaled(product)

    def scaled_inside(self, quantized_input: Tensor) -> Tensor:
        """Multiply (M, K) in E4M3 with the weight and scale each row and column in the kernel."""
        rows = torch.ones(quantized_input.shape[0], 1, device=self.weight.device)
        return torch._scaled_mm(  # noqa: SLF001
            quantized_input,
            self.weight.t(),
            scale_a=rows,
            scale_b=self.scale[None],
            bias=self.half_bias,
            out_dtype=self.dtype,
            use_fast_accum=True,
        )


class Fp8Mlp(nn.Module):
    """Two E4M3 linears with GELU between them, which quantizes for the second on its way."""

    inverse: Tensor
    bias: Tensor

    def __init__(self, first: Fp8Linear, second: Fp8Linear) -> None:
        super().__init__()
        self.first, self.second = first, second
        inverse = torch.tensor([second.inverse], device=second.weight.device)
        self.register_buffer("inverse", inverse)
        bias = torch.zeros_like(first.scale) if first.bias is None else first.bias
        self.register_buffer("bias", bias.float())

    def forward(self, x: Tensor) -> Tensor:
        """Compute both linears of (..., K)."""
        product = self.first.product(as_operand(x, self.first.inverse))
        hidden = gelu_to_e4m3(product, self.first.scale, self.bias, self.inverse)
        return self.second.finished(self.second.product(hidden)).view(*x.shape[:-1], -1)


def as_operand(x: Tensor, inverse: float) -> Tensor:
    """(..., K) as (M, K) in E4M3; a kernel before may have quantized it."""
    values = x.flatten(0, -2)
    return values if values.dtype == E4M3 else quantized(values, inverse)


def quantized(values: Tensor, inverse: Tensor | float) -> Tensor:
    """Divide by a scale and round to E4M3; what is beyond its largest value becomes that."""
    return (values.float() * inverse).clamp(-E4M3_MAX, E4M3_MAX).to(E4M3)


def fits_fp8(weight: Tensor) -> bool:
    """Whether FP8 tensor cores take a weight of this shape."""
    return weight.ndim == 2 and all(size % ALIGNMENT == 0 for size in weight.shape)
