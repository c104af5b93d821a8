"""Mask head: queries and features -> mask logits (a stage of the detector)."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.sam3.modeling_sam3 import Sam3MaskDecoder


def upsampling_kernel(weight: Tensor) -> Tensor:
    """Fold nearest-neighbour upsampling by two into the 3x3 convolution that follows it.

    ``conv3x3(upsample2(x))`` equals ``conv_transpose2d(x, kernel, stride=2, padding=1)``: each
    output phase sees the same input cell under two taps, so their weights add up. 16 products an
    input cell instead of 36.

    Args:
        weight: (out, in, 3, 3) of the convolution.

    Returns:
        (in, out, 4, 4) for ``conv_transpose2d``.
    """
    # Along one axis: K[j] = W[2 - j] + W[3 - j], taps outside 0..2 being absent.
    taps = torch.tensor(
        [[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], dtype=weight.dtype, device=weight.device
    )
    return torch.einsum("jy,ix,ocyx->coji", taps, taps, weight).contiguous()


class MaskHead(nn.Module):
    """transformers' mask decoder for a batch of images and prompts.

    What depends on the image alone is computed once for all its prompts: by linearity
    ``conv(up + skip) = conv(up) + conv(skip)``. The projection to mask space is applied to the
    queries instead of every pixel. Both only reorder sums.
    """

    def __init__(self, decoder: Sam3MaskDecoder) -> None:
        super().__init__()
        self.prompt_norm = decoder.prompt_cross_attn_norm
        self.prompt_attention = decoder.prompt_cross_attn
        self.mask_embedder = decoder.mask_embedder
        self.projection = decoder.instance_projection
        # Three stages exist, but three levels need two: the stock forward skips the last as well.
        self.skip_convolutions = nn.ModuleList(decoder.pixel_decoder.conv_layers[:2])
        self.norms = nn.ModuleList(decoder.pixel_decoder.norms[:2])
        for stage, convolution in enumerate(self.skip_convolutions):
            kernel = upsampling_kernel(cast(Tensor, convolution.weight).detach())
            self.register_buffer(f"upsampling_{stage}", kernel, persistent=False)

    def forward(
        self,
        queries: Tensor,
        skips: list[Tensor],
        encoded: Tensor,
        prompt: Tensor,
        prompt_bias: Tensor,
    ) -> Tensor:
        """Predict one mask for each query.

        Args:
            queries: (B * P, Q, D), normalized decoder output.
            skips: Feature maps from coarse to fine, (B, D, 2s, 2s) and (B, D, 4s, 4s).
            encoded: (B * P, s * s, D), encoder output.
            prompt: (B * P, L, D).
            prompt_bias: (B * P, 1, 1, L), added to attention scores.

        Returns:
            Logits (B * P, Q, 4s, 4s).
        """
        normed = self.prompt_norm(encoded)
        attended, _ = self.prompt_attention(
            query=normed, key=prompt, value=prompt, attention_mask=prompt_bias
        )
        height, width = (size // 2 for size in skips[0].shape[-2:])
        pixels = (encoded + attended).transpose(1, 2)
        pixels = pixels.reshape(*pixels.shape[:2], height, width)
        for stage, (skip, convolution, norm) in enumerate(
            zip(skips, self.skip_convolutions, self.norms, strict=True)
        ):
            kernel = cast(Tensor, getattr(self, f"upsampling_{stage}"))
            coarse = F.conv_transpose2d(pixels, kernel, stride=2, padding=1)
            pixels = F.relu(norm(_add_by_image(coarse, convolution(skip))))
        embedding = self.mask_embedder(queries)  # [B * P, Q, D]
        weight, bias = self.projection.weight.flatten(1), cast(Tensor, self.projection.bias)
        logits = torch.matmul(torch.matmul(embedding, weight), pixels.flatten(2))
        logits = logits + torch.matmul(embedding, bias)[..., None]
        return logits.view(*logits.shape[:2], *pixels.shape[-2:])


def _add_by_image(per_prompt: Tensor, per_image: Tensor) -> Tensor:
    """Add (B, …) to (B * P, …), the same for every prompt of an image."""
    batch = per_image.shape[0]
    grouped = per_prompt.view(batch, -1, *per_image.shape[1:])
    return (grouped + per_image[:, None]).flatten(0, 1)
