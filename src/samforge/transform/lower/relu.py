"""A linear with ReLU in its epilogue."""

from __future__ import annotations

import torch
from torch import Tensor

from samforge.transform.lower.linear import TypedLinear


class ReluLinear(TypedLinear):
    """A linear and the ReLU behind it as one call of cuBLASLt.

    Inductor leaves the product to cuBLAS and writes ReLU as a kernel of its own: 1.6 of 26.4 ms of
    SAM 3's detector with 16 phrases on an H200. This operator it calls as it is: it has a fallback
    for it and does not take it apart (torch/_inductor/lowering.py, torch 2.11 and 2.13), in
    packages too (torchgen/aoti/fallback_ops.py).
    """

    bias: Tensor

    def __init__(self, linear: TypedLinear) -> None:
        """Take over a linear's weights; it has a bias."""
        super().__init__(linear.weight, linear.bias, linear.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Compute ``relu(x @ weight^T + bias)`` of (..., K) in this layer's type."""
        rows = x.to(self.dtype).reshape(-1, x.shape[-1])
        result: Tensor = torch.ops.aten._addmm_activation(  # noqa: SLF001  # no other door to the epilogue
            self.bias, rows, self.weight.t(), use_gelu=False
        )
        return result.view(*x.shape[:-1], -1)
