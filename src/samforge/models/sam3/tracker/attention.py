"""Attention of the tracker: transformers' projections around one fused operator."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn


def attend(
    projections: nn.Module, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Attend with an attention module of the mask decoder.

    Args:
        projections: transformers' ``Sam3TrackerVideoAttention``.
        query: (N, Q, D).
        key: (N, K, D).
        value: (N, K, D).
        bias: Added to the scores, (N, 1, 1, K); None where every key counts.

    Returns:
        (N, Q, D).
    """
    own = cast(Any, projections)

    def by_head(tokens: Tensor) -> Tensor:
        split = tokens.view(*tokens.shape[:2], own.num_attention_heads, -1)
        return split.transpose(1, 2)

    seen = nn.functional.scaled_dot_product_attention(
        by_head(own.q_proj(query)),
        by_head(own.k_proj(key)),
        by_head(own.v_proj(value)),
        attn_mask=bias,
        scale=own.scaling,
    )
    return cast(Tensor, own.o_proj(seen.transpose(1, 2).flatten(2)))


def single_head(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attend with one head, whose values may be narrower than its keys.

    Args:
        query: (1 or N, Q, D); one row serves all.
        key: (N, K, D).
        value: (N, K, E).
        scale: Of the scores.

    Returns:
        (N, Q, E).
    """
    query = query.expand(key.shape[0], -1, -1)
    return nn.functional.scaled_dot_product_attention(
        query[:, None], key[:, None], value[:, None], scale=scale
    ).squeeze(1)


def rotary_grid(width: int, side: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the axial rotary encoding of a square grid.

    The first half of the channels turns with the column, the second with the row; neighbours turn
    together. Source: ``compute_axial_cis`` in Meta's sam3/sam/rope.py.

    Args:
        width: Channels of a head.
        side: Cells along an edge.
        theta: Base of the wavelengths.

    Returns:
        Two tensors (side * side, width) in float32.
    """
    with torch.device("cpu"):
        quarter = torch.arange(0, width // 2, 2, dtype=torch.float32)
        frequency = 1.0 / theta ** (quarter / (width // 2))
        cell = torch.arange(side, dtype=torch.float32)
        column = cell.repeat(side)[:, None] * frequency
        row = cell.repeat_interleave(side)[:, None] * frequency
        angle = torch.cat([column, row], -1).repeat_interleave(2, -1)
    return angle.cos(), angle.sin()


def rotate(tokens: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn neighbouring channels by the angle of their place.

    Args:
        tokens: (…, places, width).
        cos: (places, width) from :func:`rotary_grid`.
        sin: (places, width).
    """
    even, odd = tokens.view(*tokens.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack([-odd, even], -1).flatten(-2)
    return tokens * cos + turned * sin
