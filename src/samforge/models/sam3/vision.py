"""Part ``vision``: image -> three feature maps, and the class token that stands behind phrases."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from transformers import Sam3Config
from transformers.models.sam3.modeling_sam3 import (
    Sam3VisionModel,
    Sam3ViTLayer,
    window_partition,
    window_unpartition,
)

from samforge.models.sam3.checkpoint import feature_sizes
from samforge.models.sam3.class_token import ClassToken
from samforge.models.sam3.positions import rope_tables, sine_grid


class VisionLayer(nn.Module):
    """One ViT layer of transformers with its rotary encoding passed in as constants."""

    def __init__(self, layer: Sam3ViTLayer) -> None:
        super().__init__()
        self.window_size: int = layer.window_size
        self.layer_norm1 = layer.layer_norm1
        self.attention = layer.attention
        self.layer_norm2 = layer.layer_norm2
        self.mlp = layer.mlp

    def forward(self, hidden: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Run the layer on (B, H, W, D) tokens."""
        size_hw = (hidden.shape[1], hidden.shape[2])
        attended = self.layer_norm1(hidden)
        if self.window_size > 0:
            attended, padded_hw = window_partition(attended, self.window_size)
        attended, _ = self.attention(attended, rope)
        if self.window_size > 0:
            attended = window_unpartition(attended, self.window_size, padded_hw, size_hw)
        hidden = hidden + attended
        return cast(Tensor, hidden + self.mlp(self.layer_norm2(hidden)))


class Vision(nn.Module):
    """ViT and feature pyramid of SAM 3, without the level that the detector drops."""

    def __init__(
        self,
        encoder: Sam3VisionModel,
        config: Sam3Config,
        class_token: ClassToken | None = None,
    ) -> None:
        super().__init__()
        vit = config.vision_config.backbone_config
        self.patch_size: int = vit.patch_size
        self.embeddings = encoder.backbone.embeddings
        self.layer_norm = encoder.backbone.layer_norm
        self.layers = nn.ModuleList(VisionLayer(layer) for layer in encoder.backbone.layers)
        # The coarsest level is dead code in the stock detector.
        self.levels = nn.ModuleList(encoder.neck.fpn_layers[:-1])
        for name, window_size in (("window", vit.window_size), ("global", 0)):
            cos, sin = rope_tables(vit, window_size)
            self.register_buffer(f"{name}_cos", cos, persistent=False)
            self.register_buffer(f"{name}_sin", sin, persistent=False)
        self.class_token = class_token
        if class_token is not None:
            cells = feature_sizes(config)[-1]
            position = sine_grid(config.detr_encoder_config.hidden_size, cells, cells)
            self.register_buffer("position", position, persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Encode images.

        Args:
            images: (B, 3, S, S), normalized.

        Returns:
            Feature maps (B, D, 4s, 4s), (B, D, 2s, 2s) and (B, D, s, s); s is S / 14 for
            facebook/sam3. Behind them the class token (B, 1, D), where the detector wants one.
        """
        return self.features(self.trunk(images))

    def trunk(self, images: Tensor) -> Tensor:
        """The ViT alone, (B, D, s, s) of its width: what the tracker's neck reads too."""
        height, width = (size // self.patch_size for size in images.shape[-2:])
        hidden = self.embeddings(images)  # [B, H * W, D]
        hidden = self.layer_norm(hidden.view(hidden.shape[0], height, width, hidden.shape[-1]))
        windowed = (cast(Tensor, self.window_cos), cast(Tensor, self.window_sin))
        everywhere = (cast(Tensor, self.global_cos), cast(Tensor, self.global_sin))
        for layer in self.layers:
            hidden = layer(hidden, windowed if layer.window_size else everywhere)
        return cast(Tensor, hidden.permute(0, 3, 1, 2))

    def features(self, spatial: Tensor) -> tuple[Tensor, ...]:
        """Feature maps, and the class token where the detector wants one, from the ViT's tokens."""
        features = tuple(level(spatial) for level in self.levels)
        if self.class_token is None:
            return features
        return (*features, self.class_token(features[-1], cast(Tensor, self.position)))


def vision_encoder(config: Sam3Config) -> Sam3VisionModel:
    """Make transformers' vision encoder without weights (on the meta device)."""
    with torch.device("meta"):
        return Sam3VisionModel(config.vision_config)
