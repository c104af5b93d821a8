"""Normalizations with float32 statistics and a result of a chosen type."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TypedLayerNorm(nn.Module):
    """LayerNorm in float32 whose result is rounded once."""

    weight: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        shape: tuple[int, ...],
        weight: Tensor | None,
        bias: Tensor | None,
        epsilon: float,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.shape, self.epsilon, self.dtype = shape, epsilon, dtype
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last axes."""
        result = F.layer_norm(x.float(), self.shape, self.weight, self.bias, self.epsilon)
        return result.to(self.dtype)


class TypedGroupNorm(nn.Module):
    """GroupNorm in float32 whose result is rounded once."""

    weight: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        groups: int,
        weight: Tensor | None,
        bias: Tensor | None,
        epsilon: float,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.groups, self.epsilon, self.dtype = groups, epsilon, dtype
        self.relu = False
        """Whether :meth:`forward` ends in ReLU."""
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize groups of channels of (B, C, H, W).

        Written for channels in the last place, as convolutions leave them: in the order of their
        names Inductor reads such a map in columns (76 us of 45 at 288 x 288 x 256 on an H100).
        Moments are taken over W first: reduced at once, a group is one program's work, and 8
        programs keep 132 multiprocessors waiting for 0.5 ms.
        """
        value = x.permute(0, 2, 3, 1).float()  # [B, H, W, C]
        batch, channels = value.shape[0], value.shape[3]
        grouped = (batch, -1, self.groups, channels // self.groups)
        mean = value.mean(2).view(grouped).mean((1, 3))  # [B, G]
        square = (value * value).mean(2).view(grouped).mean((1, 3))
        inverse = (square - mean * mean).clamp(min=0.0).add(self.epsilon).rsqrt()
        repeat = channels // self.groups
        mean, inverse = (part.repeat_interleave(repeat, 1) for part in (mean, inverse))  # [B, C]
        if self.weight is not None:
            inverse = inverse * self.weight
        shift = -mean * inverse
        if self.bias is not None:
            shift = shift + self.bias
        result = value * inverse[:, None, None] + shift[:, None, None]
        if self.relu:
            result = result.relu()
        return result.to(self.dtype).permute(0, 3, 1, 2)
