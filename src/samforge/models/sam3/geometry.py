"""Exemplar boxes as prompt tokens (a stage of part ``detector_boxes``)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from transformers import Sam3Config
from transformers.models.sam3.modeling_sam3 import Sam3GeometryEncoder, box_cxcywh_to_xyxy

from samforge.models.sam3.positions import sine_encode, sine_wavelengths
from samforge.models.sam3.roi_align import roi_align
from samforge.models.sam3.text import MASKED

PADDING = -10
"""Label of a box that is not there, as in transformers."""


class Geometry(nn.Module):
    """transformers' geometry encoder for a batch of images and prompts.

    The stock module moves the CLS token behind the last valid box; here it stands behind all of
    them. Attention honours the mask and has no positions, so the order does not matter.
    """

    def __init__(self, encoder: Sam3GeometryEncoder, config: Sam3Config) -> None:
        super().__init__()
        self.encoder = encoder
        wavelengths = sine_wavelengths(config.geometry_encoder_config.hidden_size // 2)
        self.register_buffer("wavelengths", wavelengths, persistent=False)

    def forward(
        self, coarse: Tensor, position: Tensor, boxes: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Encode boxes.

        Args:
            coarse: (B, D, s, s), the coarsest feature map.
            position: (1, s * s, D), its position encoding.
            boxes: (B, P, K, 4), normalized centre and size.
            labels: (B, P, K), 1 like this, 0 not like this, -10 padding.

        Returns:
            Tokens (B * P, K + 1, D) and the mask of valid ones (B * P, K + 1).
        """
        encoder = self.encoder
        batch, prompts, count = labels.shape
        mask = (labels != PADDING).view(batch * prompts, count)
        tokens = self._embed(coarse, boxes, labels).view(batch * prompts, count, -1)
        cls = encoder.cls_embed.weight.expand(batch * prompts, 1, -1)
        tokens = encoder.prompt_layer_norm(encoder.final_proj(torch.cat([tokens, cls], 1)))
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        bias = torch.where(mask, 0.0, MASKED)[:, None, None]
        features = coarse.flatten(2).transpose(1, 2)  # [B, T, D]
        features = features[:, None].expand(-1, prompts, -1, -1).flatten(0, 1)
        for layer in encoder.layers:
            tokens = layer(
                prompt_feats=tokens,
                vision_feats=features,
                vision_pos_encoding=position,
                prompt_mask=bias,
            )
        return encoder.output_layer_norm(tokens), mask

    def _embed(self, coarse: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        """Sum of direct, pooled, position and label embedding of each box, (B, P, K, D)."""
        encoder = self.encoder
        batch, prompts, count = labels.shape
        height, width = coarse.shape[-2:]
        normalized = encoder.vision_layer_norm(coarse.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        corners = box_cxcywh_to_xyxy(boxes)
        scale = torch.tensor([width, height, width, height], dtype=boxes.dtype, device=boxes.device)
        in_cells = (corners * scale).view(batch, prompts * count, 4)
        pooled = roi_align(normalized, in_cells, encoder.roi_size)  # [B, P * K, D, R, R]
        # A convolution whose kernel covers its whole input is a linear layer.
        convolution = encoder.boxes_pool_project
        pooled = nn.functional.linear(
            pooled.flatten(2), convolution.weight.flatten(1), convolution.bias
        ).view(batch, prompts, count, -1)
        centre_x, centre_y, box_width, box_height = boxes.unbind(-1)
        wavelengths = cast(Tensor, self.wavelengths)
        position = torch.cat(
            [
                sine_encode(centre_y, wavelengths),
                sine_encode(centre_x, wavelengths),
                box_height[..., None],
                box_width[..., None],
            ],
            -1,
        )
        label = encoder.label_embed(labels.clamp(min=0))
        return cast(
            Tensor,
            label
            + (
                encoder.boxes_direct_project(boxes)
                + pooled
                + encoder.boxes_pos_enc_project(position)
            ),
        )
