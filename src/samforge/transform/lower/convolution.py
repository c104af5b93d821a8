"""Convolutions as GPUs like them: matrix products where kernel and stride agree, channels last."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ALIGNED = 8
"""Values in 16 bytes of half: rows of another length send a matrix product to slow kernels."""


class PatchConvolution(nn.Module):
    """A convolution whose kernel equals its stride, as one matrix product over patches.

    cuDNN takes 0.32 ms for the patch embedding of SAM 3 (14 x 14, an implicit GEMM for odd
    shapes) on an H200; its 6.2 GFLOP and 20 MB need 0.02.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        """Flatten the kernel.

        Args:
            weight: (N, C, k, k).
            bias: (N,) or None.
            dtype: Of both operands and the result.
        """
        super().__init__()
        self.dtype = dtype
        self.side: int = weight.shape[-1]
        flat = weight.flatten(1)
        self.padding: int = -flat.shape[1] % ALIGNED
        self.register_buffer("weight", F.pad(flat, (0, self.padding)).to(dtype).contiguous())
        self.register_buffer("bias", None if bias is None else bias.to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, H, W) to (B, N, H / k, W / k), channels last in memory."""
        side = self.side
        batch, channels, height, width = x.shape
        patches = x.to(self.dtype).reshape(
            batch, channels, height // side, side, width // side, side
        )
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3)  # [B, H / k, W / k, C * k * k]
        if self.padding:
            patches = F.pad(patches, (0, self.padding))
        return F.linear(patches, self.weight, self.bias).permute(0, 3, 1, 2)


class ScatteredConvolution(nn.Module):
    """A transposed convolution whose kernel equals its stride, as one matrix product."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        """Flatten the kernel.

        Args:
            weight: (C, N, k, k).
            bias: (N,) or None.
            dtype: Of both operands and the result.
        """
        super().__init__()
        self.dtype = dtype
        self.side: int = weight.shape[-1]
        flat = weight.permute(2, 3, 1, 0).reshape(-1, weight.shape[0])  # [k * k * N, C]
        self.register_buffer("weight", flat.to(dtype).contiguous())
        repeated = None if bias is None else bias.repeat(self.side**2)
        self.register_buffer("bias", None if repeated is None else repeated.to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, H, W) to (B, N, k H, k W), channels last in memory."""
        pixels = x.to(self.dtype).permute(0, 2, 3, 1)
        spread = F.linear(pixels, self.weight, self.bias)
        spread = spread.reshape(*spread.shape[:3], self.side, self.side, -1)  # [B, H, W, k, k, N]
        return spread.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


class TypedConvolution(nn.Module):
    """A convolution with operands of one type, channels last in memory."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        transposed: bool,
        **settings: object,
    ) -> None:
        super().__init__()
        self.dtype = dtype
        self.operator: Callable[..., Tensor] = F.conv_transpose2d if transposed else F.conv2d
        self.settings = settings
        last = weight.to(dtype).contiguous(memory_format=torch.channels_last)
        self.register_buffer("weight", last)
        self.register_buffer("bias", None if bias is None else bias.to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, H, W)."""
        x = x.to(self.dtype).contiguous(memory_format=torch.channels_last)
        return self.operator(x, self.weight, self.bias, **self.settings)


def folded_pointwise(
    scattered: tuple[Tensor, Tensor | None], pointwise: tuple[Tensor, Tensor | None]
) -> tuple[Tensor, Tensor]:
    """Multiply a 1 x 1 convolution into the transposed convolution in front of it.

    Nothing stands between the two in SAM 3's neck, so both are one linear map: half the products
    and one pass less over the largest feature map.

    Args:
        scattered: Weight (C, M, k, k) and bias (M,) of the transposed convolution.
        pointwise: Weight (N, M, 1, 1) and bias (N,) of the convolution behind it.

    Returns:
        Weight (C, N, k, k) and bias (N,) of the transposed convolution that equals both.
    """
    (first, first_bias), (second, second_bias) = scattered, pointwise
    matrix = second.flatten(1).double()  # [N, M]
    weight = torch.einsum("nm,cmyx->cnyx", matrix, first.double())
    bias = torch.zeros(len(matrix), dtype=torch.float64, device=matrix.device)
    if first_bias is not None:
        bias = matrix @ first_bias.double()
    if second_bias is not None:
        bias = bias + second_bias.double()
    return weight.to(first.dtype), bias.to(first.dtype)
