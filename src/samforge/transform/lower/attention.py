"""Scaled dot-product attention through the kernel that is fastest for its shape."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samforge.transform.lower.kernels import attend

STREAMED_SIZE = 32
"""At this head size, and over windows, the Triton kernel beats cuDNN (110 against 160 us for 5184
tokens and 8 heads of 32 on an H200); over all tokens at 64 it loses (301 against 266 us)."""
WINDOW_TOKENS = 1024


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


class StreamedAttention(nn.Module):
    """Attention by the Triton kernel, with the query's rotary encoding in it."""

    cos: Tensor | None
    sin: Tensor | None

    def __init__(
        self, dtype: torch.dtype, scale: float | None, turn: tuple[Tensor, Tensor] | None
    ) -> None:
        """Take over what surrounds the kernel.

        Args:
            dtype: Of query, key and value.
            scale: Of the scores; None takes one over the square root of the head size.
            turn: Cosine and sine (T, D / 2) by which the query is still to be turned.
        """
        super().__init__()
        self.dtype, self.scale = dtype, scale
        self.register_buffer("cos", None if turn is None else turn[0])
        self.register_buffer("sin", None if turn is None else turn[1])

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from (B, H, T, D) to (B, H, T, D)."""
        q, k, v = (tensor.to(self.dtype) for tensor in (q, k, v))
        q, k, v = (
            tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in (q, k, v)
        )
        scale = q.shape[-1] ** -0.5 if self.scale is None else self.scale
        attended: Tensor = attend(q, k, v, scale, self.cos, self.sin)
        return attended.transpose(1, 2)


def suits_streaming(q: Tensor, k: Tensor) -> bool:
    """Whether the Triton kernel is the faster one for a shape, known while tracing."""
    tokens = q.shape[-2]
    return (
        isinstance(tokens, int)
        and tokens == k.shape[-2]
        and (q.shape[-1] == STREAMED_SIZE or (q.shape[-1] == 64 and tokens <= WINDOW_TOKENS))
    )
