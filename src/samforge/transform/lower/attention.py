"""Scaled dot-product attention through the kernel that is fastest for its shape."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def for_kernel(q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Query, key and value in one type, the values of a head side by side: as kernels read them."""
    tensors = (tensor.to(dtype) for tensor in (q, k, v))
    return tuple(one if one.stride(-1) == 1 else one.contiguous() for one in tensors)


class Attention(nn.Module):
    """Attention with operands of one type."""

    def __init__(self, dtype: torch.dtype, kernel: str, scale: float | None, causal: bool) -> None:
        """Choose the kernel.

        Args:
            dtype: Of query, key, value and the result.
            kernel: ``cudnn`` or ``flash`` (no mask), ``explicit``, or ``auto``: torch's choice.
            scale: Of the scores; None takes one over the square root of the head size.
            causal: Whether a token sees only those before it.
        """
        super().__init__()
        self.dtype = dtype
        self.kernel = kernel
        self.scale = scale
        self.causal = causal

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend from (B, H, Q, D) to (B, H, T, D).

        A mask is added to the scores: it has to broadcast to (B, H, Q, T).
        """
        q, k, v = (tensor.to(self.dtype) for tensor in (q, k, v))
        if self.kernel == "explicit":
            return self._explicit(q, k, v, mask)
        kernel = self.kernel if mask is None else "auto"
        if kernel == "cudnn":
            result: Tensor
            result, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(  # noqa: SLF001
                q, k, v, None, False, 0.0, self.causal, False, scale=self.scale
            )
            return result
        if kernel == "flash":
            result, *_ = torch.ops.aten._scaled_dot_product_flash_attention(  # noqa: SLF001
                q, k, v, 0.0, self.causal, False, scale=self.scale
            )
            return result
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.to(self.dtype)
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=self.causal, scale=self.scale
        )

    def _explicit(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Two products with the softmax between them: where the scores are few.

        Inductor computes the mask inside the softmax, so a position bias is never written.
        """
        scale = q.shape[-1] ** -0.5 if self.scale is None else self.scale
        scores = torch.matmul(q, k.transpose(-2, -1)).float() * scale
        if mask is not None:
            scores = scores + mask
        return torch.matmul(scores.softmax(-1).to(self.dtype), v)
