"""Small holes and specks of masks, filled and removed where the masks are.

A component of at most ``area`` cells is at most ``area - 1`` steps across. So the highest number
of its cells reaches all of them in as many passes, and no loop waits to see whether labels change.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def filled_masks(masks: Tensor, area: int) -> Tensor:
    """As :func:`samforge.runtime.tracking.masks.filled_holes`, bit for bit; no host is waited for.

    Args:
        masks: (N, h, w), float32, logits; fewer than 2^24 cells each, which float32 can number.
        area: Cells; 0 changes nothing.
    """
    if area <= 0 or masks.numel() == 0:
        return masks
    most = torch.full((len(masks),), area, dtype=torch.int32, device=masks.device)
    filled = masks.masked_fill(_small(masks <= 0, most, area), 0.1)
    above = filled > 0
    half = above.sum(dim=(1, 2), dtype=torch.int32).div(2, rounding_mode="floor")
    return filled.masked_fill(_small(above, torch.minimum(most, half), area), -0.1)


def _small(cells: Tensor, most: Tensor, area: int) -> Tensor:
    """Cells (N, h, w) of components of at most ``most`` (N,) cells, which is at most ``area``."""
    count, height, width = cells.shape
    own = torch.arange(1, height * width + 1, dtype=torch.float32, device=cells.device)
    outside = ~cells
    labels = own.view(height, width).expand_as(cells).masked_fill(outside, 0)
    for _ in range(area - 1):
        labels = _highest(labels).masked_fill_(outside, 0)
    # Where two labels touch, neither is that of a whole component.
    lowest = -_highest(labels.masked_fill(outside, torch.inf).neg_())
    touches = (_highest(labels) != labels) | (lowest != labels)
    places = torch.where(cells, labels, own.view(height, width)).long().view(count, -1)
    worth = touches.int().mul_(area).add_(1).view(count, -1)
    sizes = torch.zeros(count, height * width + 1, dtype=torch.int32, device=cells.device)
    sizes.scatter_add_(1, places, worth)
    small = sizes.gather(1, places) <= most[:, None]
    return small.view_as(cells) & cells


def _highest(labels: Tensor) -> Tensor:
    """The highest label among each cell and its eight neighbours."""
    return F.max_pool2d(labels, 3, stride=1, padding=1)
