"""Part ``backbone``: image -> one map of patch features."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DINOv3ViTConfig, DINOv3ViTModel
from transformers.models.dinov3_vit.modeling_dinov3_vit import (
    DINOv3ViTAttention,
    DINOv3ViTLayer,
    DINOv3ViTRopePositionEmbedding,
    rotate_half,
)

from samforge.models.dinov3.config import patch_px


class Attention(nn.Module):
    """transformers' projections around attention over all tokens at once.

    The stock module cuts class and register tokens off before the rotation and puts them back after
    it, four copies a layer. Here the tables turn those tokens by zero, which is exact.
    """

    def __init__(self, attention: DINOv3ViTAttention) -> None:
        super().__init__()
        self.head_dim: int = attention.head_dim
        self.scaling: float = attention.scaling
        self.q_proj = attention.q_proj
        self.k_proj = attention.k_proj
        self.v_proj = attention.v_proj
        self.o_proj = attention.o_proj

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Attend from every token to every token.

        Args:
            hidden: (B, T, D).
            cos: (T, head size).
            sin: (T, head size).
        """
        query, key, value = (
            projection(hidden).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )  # each [B, heads, T, head size]
        query = query * cos + rotate_half(query) * sin
        key = key * cos + rotate_half(key) * sin
        mixed = F.scaled_dot_product_attention(query, key, value, scale=self.scaling)
        return cast(Tensor, self.o_proj(mixed.transpose(1, 2).flatten(2)))


class BackboneLayer(nn.Module):
    """One ViT layer of transformers with its rotary encoding passed in as constants."""

    def __init__(self, layer: DINOv3ViTLayer) -> None:
        super().__init__()
        self.norm1 = layer.norm1
        self.attention = Attention(layer.attention)
        self.layer_scale1 = layer.layer_scale1
        self.norm2 = layer.norm2
        self.mlp = layer.mlp
        self.layer_scale2 = layer.layer_scale2

    def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Run the layer on (B, T, D) tokens."""
        attended = self.attention(self.norm1(hidden), cos, sin)
        hidden = self.layer_scale1(attended) + hidden
        return cast(Tensor, self.layer_scale2(self.mlp(self.norm2(hidden))) + hidden)


class Backbone(nn.Module):
    """DINOv3 ViT with constant position encoding, without the tokens that nobody reads."""

    def __init__(
        self, model: DINOv3ViTModel, config: DINOv3ViTConfig, periods: Tensor | None = None
    ) -> None:
        """Compose the part from a stock model that holds its weights.

        Args:
            model: Its layers become the part's.
            config: With the image size already set.
            periods: (head size / 4,) of the rotary encoding, where the checkpoint brings its own.
        """
        super().__init__()
        self.side: int = config.image_size // patch_px(config)
        self.patch_embeddings = model.embeddings.patch_embeddings
        # Class token and registers are the same for every image: one constant in the graph.
        prefix = torch.cat((model.embeddings.cls_token, model.embeddings.register_tokens), dim=1)
        self.prefix_tokens = nn.Parameter(prefix.detach(), requires_grad=False)
        self.layers = nn.ModuleList(BackboneLayer(layer) for layer in model.model.layer)
        self.norm = model.norm
        cos, sin = rope_tables(config, prefix.shape[1], periods)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images.

        Args:
            images: (B, 3, S, S), normalized.

        Returns:
            (B, D, S / 16, S / 16) after the final LayerNorm.
        """
        patches = self.patch_embeddings(images).flatten(2).transpose(1, 2)  # [B, N, D]
        prefix = self.prefix_tokens.expand(patches.shape[0], -1, -1)
        hidden = torch.cat((prefix, patches), dim=1)  # [B, T, D]
        cos, sin = cast(Tensor, self.cos), cast(Tensor, self.sin)
        for layer in self.layers:
            hidden = layer(hidden, cos, sin)
        features = self.norm(hidden[:, self.prefix_tokens.shape[1] :])  # [B, N, D]
        return cast(Tensor, features.transpose(1, 2).unflatten(2, (self.side, self.side)))


def rope_tables(
    config: DINOv3ViTConfig, prefix: int, periods: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the axial rotary encoding, by transformers' own code.

    Args:
        config: With the image size set.
        prefix: Class and register tokens, which stand first and are not turned.
        periods: (head size / 4,) in place of those that ``config.rope_theta`` gives. SAM 3D Body's
            are rounded to bfloat16, and features differ by 7e-5 without that rounding.

    Returns:
        Two tensors (prefix + patches, head size) in float32, whatever the model's own type.
    """
    with torch.device("cpu"), torch.no_grad():
        rotary = DINOv3ViTRopePositionEmbedding(config).eval()
        if periods is not None:
            rotary.inv_freq.copy_(1 / periods.to(torch.float32))
        cos, sin = rotary(torch.zeros(1, 1, config.image_size, config.image_size))
        still = torch.zeros(prefix, cos.shape[1])
        return torch.cat((still + 1, cos)), torch.cat((still, sin))


def stock_model(config: DINOv3ViTConfig) -> DINOv3ViTModel:
    """Make transformers' model without weights (on the meta device)."""
    with torch.device("meta"):
        return DINOv3ViTModel(config)
