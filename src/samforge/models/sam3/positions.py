"""Position encodings of SAM 3 as constants: they depend on shapes and configuration only.

The stock modules rebuild them in every forward. In a graph that costs launches and, worse, leaves
CumSum and arange nodes that TensorRT miscompiles (NVIDIA/TensorRT#4551). They are computed here
once, in float32, by transformers' own code, and become buffers.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from transformers.models.sam3.configuration_sam3 import Sam3ViTConfig
from transformers.models.sam3.modeling_sam3 import (
    Sam3SinePositionEmbedding,
    Sam3ViTLayer,
    Sam3ViTRotaryEmbedding,
)

TWO_PI = 2 * torch.pi


def rope_tables(config: Sam3ViTConfig, window_size: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the axial rotary encoding.

    Args:
        config: Of the ViT.
        window_size: Tokens along a window's edge, or 0 for a layer with global attention.

    Returns:
        Two tensors (1, tokens, head size) in float32, whatever the model's own type: rounding the
        frequencies to half costs up to 0.04 in the cosine.
    """
    with torch.device("cpu"):
        rotary = Sam3ViTRotaryEmbedding(config)
        positions = Sam3ViTLayer.precompute_positions(config, window_size)
        cos, sin = rotary(torch.zeros(1), positions)
    return cos.contiguous(), sin.contiguous()


def sine_grid(channels: int, height: int, width: int) -> Tensor:
    """Sine position encoding of a feature map.

    Returns:
        (1, height * width, channels) in float32.
    """
    with torch.device("cpu"):
        encoding = Sam3SinePositionEmbedding(channels // 2, normalize=True)
        grid = encoding(torch.Size((1, channels, height, width)), "cpu", torch.float32)
    return cast(Tensor, grid.flatten(2).transpose(1, 2).contiguous())


def sine_wavelengths(features: int, temperature: float = 10000.0) -> Tensor:
    """Wavelengths of the sine encoding of box coordinates, (features,) in float32.

    Source: ``Sam3SinePositionEmbedding.encode_boxes`` in transformers.
    """
    index = torch.arange(features, dtype=torch.int64).to(torch.float32)
    exponent = 2 * torch.div(index, 2, rounding_mode="floor") / features
    return torch.as_tensor(temperature**exponent, dtype=torch.float32)


def sine_encode(coordinate: Tensor, wavelengths: Tensor) -> Tensor:
    """Encode coordinates in [0, 1] as interleaved sines and cosines.

    Args:
        coordinate: Any shape.
        wavelengths: (features,) from :func:`sine_wavelengths`.

    Returns:
        The shape of ``coordinate`` with an axis of ``features`` added at the end.
    """
    angle = (coordinate * TWO_PI)[..., None] / wavelengths
    return torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), dim=-1).flatten(-2)
