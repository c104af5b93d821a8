"""Part ``memory_attention``: the frame's features look back at what is remembered of objects."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from transformers.models.sam3_tracker_video.configuration_sam3_tracker_video import (
    Sam3TrackerVideoConfig,
)
from transformers.models.sam3_tracker_video.modeling_sam3_tracker_video import (
    Sam3TrackerVideoMemoryAttention,
    Sam3TrackerVideoMemoryAttentionLayer,
)

from samforge.models.sam3.class_token import joined
from samforge.models.sam3.positions import sine_grid
from samforge.models.sam3.tracker.attention import rotary_grid, rotate, single_head
from samforge.models.sam3.tracker.modules import Vectors

OWN_POSITION = 0.1
"""Share of the position encoding that is added to the frame's features."""


class SelfAttention(nn.Module):
    """Cells of the frame look at each other."""

    def __init__(self, layer: Sam3TrackerVideoMemoryAttentionLayer) -> None:
        super().__init__()
        self.norm, self.attention = layer.layer_norm1, layer.self_attn
        self.scale: float = layer.self_attn.scaling

    def forward(self, cells: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """(1 or N, L, D) to the same."""
        seen, own = self.norm(cells), self.attention
        query, key = rotate(own.q_proj(seen), *rotary), rotate(own.k_proj(seen), *rotary)
        return cast(
            Tensor, cells + own.o_proj(single_head(query, key, own.v_proj(seen), self.scale))
        )


class CrossAttention(nn.Module):
    """Cells of the frame look at memories.

    The shares of a query add up to one, so values may be projected behind their sum: memories are
    64 wide and values 256, which saves three quarters of the second product. With one head the
    projections of value and output are one.
    """

    def __init__(self, layer: Sam3TrackerVideoMemoryAttentionLayer) -> None:
        super().__init__()
        attention = layer.cross_attn_image
        self.norm = layer.layer_norm2
        self.query, self.key = attention.q_proj, attention.k_proj
        self.value = joined(attention.v_proj, attention.o_proj)
        self.scale: float = attention.scaling

    def forward(
        self, cells: Tensor, remembered: Remembered, rotary: tuple[Tensor, Tensor]
    ) -> Tensor:
        """(1 or N, L, D) to (N, L, D)."""
        query = rotate(self.query(self.norm(cells)), *rotary)
        # [N, M, L, D]: every memory is a grid of its own; pointers have no place in one.
        maps = rotate(self.key(remembered.placed_maps), *rotary)
        key = torch.cat([maps.flatten(1, 2), self.key(remembered.placed_pointers)], 1)
        return cast(
            Tensor, cells + self.value(single_head(query, key, remembered.values, self.scale))
        )


class Remembered:
    """What keys and values are made of, the same for all layers."""

    def __init__(self, placed_maps: Tensor, placed_pointers: Tensor, values: Tensor) -> None:
        self.placed_maps = placed_maps  # [N, M, L, C] with their position encoding
        self.placed_pointers = placed_pointers  # [N, P * D / C, C] with theirs
        self.values = values  # [N, M * L + P * D / C, C] without


class Layer(nn.Module):
    """One layer of transformers' memory attention."""

    def __init__(self, layer: Sam3TrackerVideoMemoryAttentionLayer) -> None:
        super().__init__()
        self.self_attention = SelfAttention(layer)
        self.cross_attention = CrossAttention(layer)
        self.norm = layer.layer_norm3
        self.linear1, self.activation, self.linear2 = (
            layer.linear1,
            layer.activation,
            layer.linear2,
        )

    def forward(
        self, cells: Tensor, remembered: Remembered, rotary: tuple[Tensor, Tensor]
    ) -> Tensor:
        """(1 or N, L, D) to (N, L, D)."""
        cells = self.self_attention(cells, rotary)
        cells = self.cross_attention(cells, remembered, rotary)
        return cast(Tensor, cells + self.linear2(self.activation(self.linear1(self.norm(cells)))))


class MemoryAttention(nn.Module):
    """The frame as each object's memory lets it be seen.

    All objects of a call have the same number of memories and of pointers: a mask over tens of
    thousands of keys would cost the fast kernels, so whoever calls groups objects by both numbers.
    Until the first look at memories the frame is the same for all of them, and computed once.

    Args:
        attention: transformers' layers.
        pointer_time: Projects the encoding of a pointer's time.
        vectors: With ``memory_temporal_positional_encoding``.
        config: Of the tracker.
        side: Cells along the edge of a feature map.
        rounds: Whether memories are rounded to bfloat16, as Meta's predictor and transformers store
            them whatever they compute in. Memories that are stored so already do not change.
    """

    def __init__(
        self,
        attention: Sam3TrackerVideoMemoryAttention,
        pointer_time: nn.Linear,
        vectors: Vectors,
        config: Sam3TrackerVideoConfig,
        side: int,
        *,
        rounds: bool = True,
    ) -> None:
        super().__init__()
        self.width: int = config.memory_attention_hidden_size
        self.memory_width: int = config.memory_encoder_output_channels
        self.side = side
        self.rounds = rounds
        self.layers = nn.ModuleList(Layer(layer) for layer in attention.layers)
        self.norm = attention.layer_norm
        self.pointer_time = pointer_time
        temporal = vectors.vector("memory_temporal_positional_encoding").detach().flatten(1)
        # Frame offsets count from 1; index 0, a conditioning frame, is the last row at Meta's.
        self.register_buffer("temporal", temporal.roll(1, 0), persistent=False)  # [7, C]
        cos, sin = rotary_grid(self.width, side, config.rope_parameters["rope_theta"])
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, width in (("cell_position", self.width), ("memory_position", self.memory_width)):
            self.register_buffer(name, sine_grid(width, side, side), persistent=False)
        half = self.width // 2
        self.register_buffer("wavelengths", _wavelengths(half), persistent=False)

    def forward(
        self,
        tracker_features: Tensor,
        memory: Tensor,
        memory_offsets: Tensor,
        pointers: Tensor,
        pointer_times: Tensor,
    ) -> Tensor:
        """Condition the frame's features.

        Args:
            tracker_features: (1, D, s, s), of the frame.
            memory: (N, M, s * s, C), what part ``memory_encoder`` gave for M frames.
            memory_offsets: (N, M), int64: 0 for a conditioning frame, else 1 for the frame before
                to 6.
            pointers: (N, P, D).
            pointer_times: (N, P): frames between a pointer's and this one, divided by the largest
                number of pointers less one (15, or less in a short video).

        Returns:
            (N, D, s, s).
        """
        cells = tracker_features.flatten(2).transpose(1, 2)  # [1, L, D]
        cells = cells + OWN_POSITION * cast(Tensor, self.cell_position)
        remembered = self._remembered(memory, memory_offsets, pointers, pointer_times)
        rotary = (cast(Tensor, self.cos), cast(Tensor, self.sin))
        for layer in self.layers:
            cells = layer(cells, remembered, rotary)
        seen = self.norm(cells).transpose(1, 2)
        return cast(Tensor, seen.view(*seen.shape[:2], self.side, self.side))

    def _remembered(
        self, memory: Tensor, offsets: Tensor, pointers: Tensor, times: Tensor
    ) -> Remembered:
        if self.rounds:
            memory = memory.to(torch.bfloat16).to(pointers.dtype)
        when = nn.functional.embedding(offsets, cast(Tensor, self.temporal))  # [N, M, C]
        placed = memory + (cast(Tensor, self.memory_position) + when[:, :, None])
        tokens = pointers.view(*pointers.shape[:2], -1, self.memory_width)  # [N, P, D / C, C]
        angle = times[..., None] / cast(Tensor, self.wavelengths)
        when = self.pointer_time(torch.cat([angle.sin(), angle.cos()], -1))  # [N, P, C]
        return Remembered(
            placed,
            (tokens + when[:, :, None]).flatten(1, 2),
            torch.cat([memory.flatten(1, 2), tokens.flatten(1, 2)], 1),
        )


def _wavelengths(features: int, temperature: float = 10000.0) -> Tensor:
    """Source: ``get_1d_sine_pe`` in transformers and in Meta's sam3_tracker_utils.py."""
    index = torch.arange(features, dtype=torch.float32, device="cpu")
    return temperature ** (2 * (index // 2) / features)
