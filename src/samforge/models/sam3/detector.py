"""Parts ``detector`` and ``detector_boxes``: features and prompts -> boxes, scores and masks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Sam3Config
from transformers.models.sam3.modeling_sam3 import (
    Sam3DetrDecoder,
    Sam3DetrEncoderLayer,
    box_cxcywh_to_xyxy,
    inverse_sigmoid,
)

from samforge.models.sam3.checkpoint import feature_sizes
from samforge.models.sam3.geometry import Geometry
from samforge.models.sam3.masks import MaskHead
from samforge.models.sam3.modules import DetectorModules
from samforge.models.sam3.positions import sine_encode, sine_grid, sine_wavelengths
from samforge.models.sam3.text import MASKED

Results: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]
"""Logits, boxes, mask logits and presence logits."""


class Encoder(nn.Module):
    """transformers' DETR encoder: image tokens attend to each other, then to the prompt."""

    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.layers = layers

    def forward(
        self, tokens: Tensor, position: Tensor, prompt: Tensor, bias: Tensor, prompts: int
    ) -> Tensor:
        """Fuse every image with every prompt.

        Args:
            tokens: (B, T, D).
            position: (1, T, D).
            prompt: (B * P, L, D), the prompts of the first image first.
            bias: (B * P, 1, 1, L), added to attention scores.
            prompts: P.

        Returns:
            (B * P, T, D).
        """
        for index, layer in enumerate(cast("Iterable[Sam3DetrEncoderLayer]", self.layers)):
            tokens = _attend_to_image(layer, tokens, position)
            if index == 0:
                # Until the first look at the prompt all prompts of an image see the same tokens.
                tokens = tokens[:, None].expand(-1, prompts, -1, -1).flatten(0, 1)
            attended, _ = layer.cross_attn(
                query=layer.layer_norm2(tokens), key=prompt, value=prompt, attention_mask=bias
            )
            tokens = tokens + attended
            tokens = tokens + layer.mlp(layer.layer_norm3(tokens))
        return tokens


def _attend_to_image(layer: Sam3DetrEncoderLayer, tokens: Tensor, position: Tensor) -> Tensor:
    normed = layer.layer_norm1(tokens)
    with_position = normed + position
    attended, _ = layer.self_attn(query=with_position, key=with_position, value=normed)
    return cast(Tensor, tokens + attended)


class Decoder(nn.Module):
    """transformers' DETR decoder with integer sizes and constants instead of shape tensors."""

    def __init__(
        self, decoder: Sam3DetrDecoder, height: int, width: int, *, clamps_presence: bool
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.clamps_presence = clamps_presence
        wavelengths = sine_wavelengths(decoder.hidden_size // 2)
        self.register_buffer("wavelengths", wavelengths, persistent=False)
        for axis, size in (("rows", height), ("columns", width)):
            self.register_buffer(axis, torch.arange(size).float() / size, persistent=False)

    def forward(
        self, encoded: Tensor, position: Tensor, prompt: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Decode queries.

        Args:
            encoded: (N, T, D), N images and prompts together.
            position: (1, T, D).
            prompt: (N, L, D).
            bias: (N, 1, 1, L), added to attention scores.

        Returns:
            Normalized queries (N, Q, D), boxes (N, Q, 4) as cxcywh, presence logit (N,).
        """
        decoder = self.decoder
        count = encoded.shape[0]
        boxes = decoder.reference_points.weight.sigmoid().expand(count, -1, -1)
        queries = torch.cat([decoder.presence_token.weight, decoder.query_embed.weight])
        hidden = queries.expand(count, -1, -1)  # [N, 1 + Q, D], the presence token first
        normed = hidden
        for layer in decoder.layers:
            hidden = layer(
                hidden,
                query_pos=decoder.ref_point_head(self._encode(boxes)),
                text_features=prompt,
                vision_features=encoded,
                vision_pos_encoding=position,
                text_cross_attn_mask=bias,
                # The presence token attends everywhere alike: a row of zeros.
                vision_cross_attn_mask=F.pad(self._relative_bias(boxes), (0, 0, 1, 0)),
            )
            normed = decoder.output_layer_norm(hidden[:, 1:])
            boxes = (decoder.box_head(normed) + inverse_sigmoid(boxes)).sigmoid()
        presence = decoder.presence_head(decoder.presence_layer_norm(hidden[:, 0])).squeeze(-1)
        if self.clamps_presence:  # Meta's code drops the clamp's result
            limit = decoder.clamp_presence_logit_max_val
            presence = presence.clamp(-limit, limit)
        return normed, boxes, presence

    def _encode(self, boxes: Tensor) -> Tensor:
        """Sine encoding of boxes in the stock order y, x, w, h: (N, Q, 2 * D)."""
        encoded = sine_encode(boxes, cast(Tensor, self.wavelengths))  # [N, Q, 4, D / 2]
        x, y, width, height = encoded.unbind(2)
        return torch.cat([y, x, width, height], dim=-1)

    def _relative_bias(self, boxes: Tensor) -> Tensor:
        """Attention bias from the distance of each cell to each box edge: (N, heads, Q, T)."""
        left, top, right, bottom = box_cxcywh_to_xyxy(boxes).unbind(-1)
        rows = _log_distance(cast(Tensor, self.rows), top, bottom)
        columns = _log_distance(cast(Tensor, self.columns), left, right)
        down = self.decoder.box_rpb_embed_y(rows).permute(0, 3, 1, 2)  # [N, heads, Q, H]
        across = self.decoder.box_rpb_embed_x(columns).permute(0, 3, 1, 2)  # [N, heads, Q, W]
        return cast(Tensor, (down[..., None] + across[..., None, :]).flatten(3))


def _log_distance(cells: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Signed log distance of cells to two edges: (N, Q, cells, 2).

    Source: ``Sam3DetrDecoder._get_rpb_matrix`` in transformers.
    """
    distance = torch.stack([cells - low[..., None], cells - high[..., None]], dim=-1) * 8
    return torch.sign(distance) * torch.log2(distance.abs() + 1.0) / math.log2(8)


class Detector(nn.Module):
    """SAM 3's detector for every image with every prompt; here a prompt is a phrase alone.

    That is what transformers computes for phrases. Meta's code has a token of the geometry encoder
    behind each: see :class:`DetectorWithClassToken`.
    """

    def __init__(
        self, modules: DetectorModules, config: Sam3Config, *, clamps_presence: bool
    ) -> None:
        super().__init__()
        cells = feature_sizes(config)[-1]
        position = sine_grid(config.detr_encoder_config.hidden_size, cells, cells)
        self.register_buffer("position", position, persistent=False)
        self.encoder = Encoder(modules.detr_encoder.layers)
        self.decoder = Decoder(modules.detr_decoder, cells, cells, clamps_presence=clamps_presence)
        self.scoring = modules.dot_product_scoring
        self.masks = MaskHead(modules.mask_decoder)

    def forward(
        self,
        fpn_0: Tensor,
        fpn_1: Tensor,
        fpn_2: Tensor,
        text_features: Tensor,
        text_mask: Tensor,
    ) -> Results:
        """Detect what each phrase names in each image.

        Args:
            fpn_0: (B, D, 4s, 4s).
            fpn_1: (B, D, 2s, 2s).
            fpn_2: (B, D, s, s).
            text_features: (P, L, D).
            text_mask: (P, L), True where a token is valid.

        Returns:
            Logits (B, P, Q), boxes (B, P, Q, 4) as normalized xyxy, mask logits (B, P, Q, 4s, 4s)
            and presence logits (B, P).
        """
        prompt, mask = of_every_image(text_features, text_mask, fpn_2.shape[0])
        return self.detect((fpn_0, fpn_1, fpn_2), prompt, mask)

    def detect(
        self, features: tuple[Tensor, Tensor, Tensor], prompt: Tensor, mask: Tensor
    ) -> Results:
        """Detect what each prompt asks for.

        Args:
            features: Feature maps (B, D, h, w), finest first.
            prompt: (B * P, L, D), the prompts of the first image first.
            mask: (B * P, L), True where a token is valid.

        Returns:
            As :meth:`forward`.
        """
        fpn_0, fpn_1, fpn_2 = features
        batch = fpn_2.shape[0]
        position = cast(Tensor, self.position)
        bias = torch.where(mask, 0.0, MASKED)[:, None, None]
        image_tokens = fpn_2.flatten(2).transpose(1, 2)
        encoded = self.encoder(image_tokens, position, prompt, bias, prompt.shape[0] // batch)
        queries, boxes, presence = self.decoder(encoded, position, prompt, bias)
        logits = self.scoring(queries[None], prompt, mask)[0].squeeze(-1)
        masks = self.masks(queries, [fpn_1, fpn_0], encoded, prompt, bias)
        return (
            logits.unflatten(0, (batch, -1)),
            box_cxcywh_to_xyxy(boxes).unflatten(0, (batch, -1)),
            masks.unflatten(0, (batch, -1)),
            presence.unflatten(0, (batch, -1)),
        )


class DetectorWithClassToken(Detector):
    """The detector as Meta's code runs it for phrases: with a token that has seen the image."""

    def forward(  # type: ignore[override]  # the graph's inputs, in order
        self,
        fpn_0: Tensor,
        fpn_1: Tensor,
        fpn_2: Tensor,
        class_token: Tensor,
        text_features: Tensor,
        text_mask: Tensor,
    ) -> Results:
        """As :meth:`Detector.forward`, and:

        Args:
            fpn_0: (B, D, 4s, 4s).
            fpn_1: (B, D, 2s, 2s).
            fpn_2: (B, D, s, s).
            class_token: (B, 1, D), from part ``vision``.
            text_features: (P, L, D).
            text_mask: (P, L), True where a token is valid.
        """
        batch, prompts = fpn_2.shape[0], text_mask.shape[0]
        prompt, mask = of_every_image(text_features, text_mask, batch)
        token = class_token[:, None].expand(-1, prompts, -1, -1).flatten(0, 1)
        prompt = torch.cat([prompt, token], 1)  # [B * P, L + 1, D]
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        return self.detect((fpn_0, fpn_1, fpn_2), prompt, mask)


class DetectorWithBoxes(Detector):
    """The detector with exemplar boxes, alone or beside a phrase."""

    def __init__(
        self, modules: DetectorModules, config: Sam3Config, *, clamps_presence: bool
    ) -> None:
        super().__init__(modules, config, clamps_presence=clamps_presence)
        self.geometry = Geometry(modules.geometry_encoder, config)

    def forward(  # type: ignore[override]  # noqa: PLR0913, PLR0917  # the graph's inputs, in order
        self,
        fpn_0: Tensor,
        fpn_1: Tensor,
        fpn_2: Tensor,
        text_features: Tensor,
        text_mask: Tensor,
        boxes_cxcywh: Tensor,
        box_labels: Tensor,
    ) -> Results:
        """As :meth:`Detector.forward`, and:

        Args:
            fpn_0: (B, D, 4s, 4s).
            fpn_1: (B, D, 2s, 2s).
            fpn_2: (B, D, s, s).
            text_features: (P, L, D).
            text_mask: (P, L), True where a token is valid.
            boxes_cxcywh: (B, P, K, 4), normalized exemplars.
            box_labels: (B, P, K), 1 like this, 0 not like this, -10 padding.
        """
        prompt, mask = of_every_image(text_features, text_mask, fpn_2.shape[0])
        position = cast(Tensor, self.position)
        tokens, valid = self.geometry(fpn_2, position, boxes_cxcywh, box_labels)
        prompt, mask = torch.cat([prompt, tokens], 1), torch.cat([mask, valid], 1)
        return self.detect((fpn_0, fpn_1, fpn_2), prompt, mask)


def of_every_image(features: Tensor, mask: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """(P, L, D) and (P, L) of the phrases to (B * P, L, D) and (B * P, L)."""
    return (
        features.expand(batch, -1, -1, -1).flatten(0, 1),
        mask.expand(batch, -1, -1).flatten(0, 1),
    )
