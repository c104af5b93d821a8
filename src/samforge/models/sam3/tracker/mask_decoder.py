"""Tokens and image look at each other, and tokens become masks: a stage of three parts."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers.models.sam3_tracker_video.modeling_sam3_tracker_video import (
    Sam3TrackerVideoMaskDecoder,
    Sam3TrackerVideoTwoWayTransformer,
)

from samforge.models.sam3.tracker.attention import attend

FIXED_TOKENS = 2
"""Score and IoU: they stand before the mask tokens."""
NO_OBJECT = -1024.0
"""Every logit of a mask whose object is not in the picture."""


class Decoded(NamedTuple):
    """What the decoder says before masks are drawn."""

    tokens: Tensor
    """(N, masks, D)."""
    ious: Tensor
    """(N, masks), 0 to 1."""
    object_score: Tensor
    """(N, 1), logits: above 0 the object is in the picture."""
    canvas: Tensor
    """(N, D / 8, 4s, 4s), enlarged image features."""


class TwoWay(nn.Module):
    """transformers' two-way transformer with the image's positions as a constant.

    Args:
        transformer: Layers and their weights.
        position: (1, L, D), encoding of the image's cells.
    """

    def __init__(self, transformer: Sam3TrackerVideoTwoWayTransformer, position: Tensor) -> None:
        super().__init__()
        self.layers = transformer.layers
        self.final = transformer.final_attn_token_to_image
        self.norm = transformer.layer_norm_final_attn
        self.register_buffer("position", position, persistent=False)

    def forward(self, tokens: Tensor, cells: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Let both sides look at each other.

        Args:
            tokens: (N, T, D).
            cells: (N, L, D).
            bias: (N, 1, 1, T), hides tokens; None where all count.

        Returns:
            Tokens and cells.
        """
        queries, position = tokens, cast(Tensor, self.position)
        for layer in self.layers:
            if layer.skip_first_layer_pe:
                queries = attend(layer.self_attn, queries, queries, queries, bias)
            else:
                placed = queries + tokens
                queries = queries + attend(layer.self_attn, placed, placed, queries, bias)
            queries = layer.layer_norm1(queries)
            keys = cells + position
            seen = attend(layer.cross_attn_token_to_image, queries + tokens, keys, cells)
            queries = layer.layer_norm2(queries + seen)
            queries = layer.layer_norm3(queries + layer.mlp(queries))
            seen = attend(layer.cross_attn_image_to_token, keys, queries + tokens, queries, bias)
            cells = layer.layer_norm4(cells + seen)
        seen = attend(self.final, queries + tokens, cells + position, cells)
        return self.norm(queries + seen), cells


class MaskDecoder(nn.Module):
    """transformers' mask decoder for a batch of objects in one image.

    Args:
        decoder: Its weights, without the narrowing of features, which belongs to the neck.
        position: (1, L, D), encoding of the image's cells.
        side: Cells along an edge, s.
        first: First mask token that is wanted: 0 for all four, 1 for the three of a choice.
    """

    def __init__(
        self, decoder: Sam3TrackerVideoMaskDecoder, position: Tensor, side: int, *, first: int
    ) -> None:
        super().__init__()
        self.side = side
        self.first = first
        self.score_token, self.iou_token = decoder.obj_score_token, decoder.iou_token
        self.mask_tokens = decoder.mask_tokens
        self.transformer = TwoWay(decoder.transformer, position)
        self.upscale_conv1, self.upscale_conv2 = decoder.upscale_conv1, decoder.upscale_conv2
        self.upscale_norm, self.activation = decoder.upscale_layer_norm, decoder.activation
        self.hypernetworks = nn.ModuleList(decoder.output_hypernetworks_mlps[first:])
        self.iou_head, self.score_head = decoder.iou_prediction_head, decoder.pred_obj_score_head

    def forward(
        self,
        prompts: Tensor,
        cells: Tensor,
        high_res_0: Tensor,
        high_res_1: Tensor,
        bias: Tensor | None = None,
    ) -> Decoded:
        """Decode prompts.

        Args:
            prompts: (N, K, D), tokens of points.
            cells: (N, L, D), features with the dense prompt.
            high_res_0: (1, D / 8, 4s, 4s).
            high_res_1: (1, D / 4, 2s, 2s).
            bias: (N, 1, 1, tokens), hides prompts; None where all count.
        """
        tokens = torch.cat([self._own_tokens().expand(prompts.shape[0], -1, -1), prompts], 1)
        tokens, cells = self.transformer(tokens, cells, bias)
        masks = tokens[:, FIXED_TOKENS : FIXED_TOKENS + self.mask_tokens.num_embeddings]
        return Decoded(
            tokens=masks[:, self.first :],
            ious=self.iou_head(tokens[:, 1])[:, self.first :],
            object_score=self.score_head(tokens[:, 0]),
            canvas=self._canvas(cells, high_res_0, high_res_1),
        )

    def brushes(self, tokens: Tensor) -> Tensor:
        """Weights that draw a mask each, (N, masks, D / 8), from mask tokens (N, masks, D)."""
        drawn = [
            hypernetwork(tokens[:, index]) for index, hypernetwork in enumerate(self.hypernetworks)
        ]
        return torch.stack(drawn, 1)

    def _own_tokens(self) -> Tensor:
        own = (self.score_token, self.iou_token, self.mask_tokens)
        return torch.cat([embedding.weight for embedding in own])[None]

    def _canvas(self, cells: Tensor, high_res_0: Tensor, high_res_1: Tensor) -> Tensor:
        image = cells.transpose(1, 2)  # [N, D, L]
        image = image.view(*image.shape[:2], self.side, self.side)
        image = self.upscale_conv1(image) + high_res_1
        image = self.activation(self.upscale_norm(image))
        return cast(Tensor, self.activation(self.upscale_conv2(image) + high_res_0))


def draw(brushes: Tensor, canvas: Tensor) -> Tensor:
    """Masks (N, masks, 4s, 4s) of :meth:`MaskDecoder.brushes` on a canvas (N, D / 8, 4s, 4s)."""
    return (brushes @ canvas.flatten(2)).view(*brushes.shape[:2], *canvas.shape[2:])


def cell_positions(matrix: Tensor, side: int) -> Tensor:
    """Encode the middles of all cells of an image.

    Args:
        matrix: (2, D / 2), ``positional_embedding`` of the checkpoint.
        side: Cells along an edge.

    Returns:
        (1, side * side, D) in float32.
    """
    middle = (torch.arange(side, dtype=torch.float32, device="cpu") + 0.5) / side
    columns, rows = middle.repeat(side), middle.repeat_interleave(side)
    return encode_places(torch.stack([columns, rows], -1), matrix.detach())[None]


def encode_places(places: Tensor, matrix: Tensor) -> Tensor:
    """Encode places in an image by random frequencies.

    Args:
        places: (…, 2), x and y as fractions of the image.
        matrix: (2, D / 2).

    Returns:
        (…, D).
    """
    angle = 2 * torch.pi * ((2 * places - 1) @ matrix)
    return torch.cat([angle.sin(), angle.cos()], -1)
