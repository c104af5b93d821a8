"""RoIAlign as two matrix products: exportable, without torchvision, without gather.

Sampling with bilinear interpolation is linear and separable, so pooling a box is
``Wy @ feature @ Wx^T`` with tent-shaped weights. The grid is torchvision's adaptive one
(``aligned=False, sampling_ratio=-1``: https://pytorch.org/vision/stable/generated/torchvision.ops.roi_align.html),
written over the largest grid a box can need with the rest masked, so that shapes stay static.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _axis_weights(start: Tensor, length: Tensor, cells: int, bins: int) -> Tensor:
    """Weight of every feature cell in every bin along one axis.

    Args:
        start: (B, K) lower edge of each box in cells.
        length: (B, K) extent of each box in cells, at least 1.
        cells: Size of the feature map along this axis.
        bins: Output bins.

    Returns:
        (B, K, bins, cells); each row averages the samples of its bin.
    """
    per_bin = (length / bins)[..., None, None]  # [B, K, 1, 1]
    grid = torch.ceil(length / bins)[..., None, None]
    # A box never spans more than the whole map plus its rounding.
    samples = -(-cells // bins) + 1
    bin_index = torch.arange(bins, device=start.device, dtype=start.dtype)[:, None]
    sample_index = torch.arange(samples, device=start.device, dtype=start.dtype)[None]
    position = (
        start[..., None, None] + bin_index * per_bin + (sample_index + 0.5) * per_bin / grid
    )  # [B, K, bins, samples]
    inside = (sample_index < grid) & (position >= -1) & (position <= cells)
    share = inside.to(start.dtype) / grid
    position = position.clamp(0, cells - 1)
    cell = torch.arange(cells, device=start.device, dtype=start.dtype)
    tent = (1 - (position[..., None] - cell).abs()).clamp(min=0)  # [B, K, bins, samples, cells]
    return (tent * share[..., None]).sum(3)


def roi_align(feature_bchw: Tensor, boxes_xyxy: Tensor, bins: int) -> Tensor:
    """Average-pool boxes of a feature map into a fixed grid.

    Args:
        feature_bchw: (B, C, H, W).
        boxes_xyxy: (B, K, 4) in cells of the feature map, inside the map.
        bins: Output height and width.

    Returns:
        (B, K, C, bins, bins), equal to ``torchvision.ops.roi_align`` within rounding.
    """
    height, width = feature_bchw.shape[-2:]
    left, top, right, bottom = boxes_xyxy.unbind(-1)
    across = _axis_weights(left, (right - left).clamp(min=1.0), width, bins)  # [B, K, bins, W]
    down = _axis_weights(top, (bottom - top).clamp(min=1.0), height, bins)  # [B, K, bins, H]
    rows = torch.einsum("bkrh,bchw->bkcrw", down, feature_bchw)
    return torch.einsum("bkcrw,bkqw->bkcrq", rows, across)
