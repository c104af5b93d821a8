"""GELU without erf, as a layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from samforge.transform.lower.gelu import fast_gelu
from samforge.transform.lower.gelu_kernels import gelu_half


class FastGelu(nn.Module):
    """:func:`.gelu.fast_gelu` rounded once; in half by a kernel with the hardware's tanh."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """Apply GELU to every element."""
        if x.dtype == self.dtype != torch.float32 and x.ndim >= 2:
            result: Tensor = gelu_half(x.contiguous())
            return result
        return fast_gelu(x.float()).to(self.dtype)
