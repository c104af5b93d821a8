"""Stacks of small maps enlarged or made smaller as torch's ``interpolate`` does it, in numpy."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from samforge.runtime.tracking.state import Floats


def enlarged(masks: Floats, size_hw: tuple[int, int]) -> Floats:
    """Resize bilinearly between the centres of cells (``align_corners=False``).

    Args:
        masks: (N, h, w).
        size_hw: Height and width that come out, no smaller than h and w.

    Returns:
        (N, H, W), float32.
    """
    first, second, weight = _taps(masks.shape[1], size_hw[0])
    tall = masks[:, first] * (1 - weight)[:, None] + masks[:, second] * weight[:, None]
    first, second, weight = _taps(masks.shape[2], size_hw[1])
    wide = tall[:, :, first] * (1 - weight) + tall[:, :, second] * weight
    return wide.astype(np.float32, copy=False)


def resampled(masks: Floats, size_hw: tuple[int, int]) -> Floats:
    """Resize bilinearly, with antialiasing where a side becomes smaller.

    Args:
        masks: (N, h, w).
        size_hw: Height and width that come out.

    Returns:
        (N, H, W), float32.
    """
    down = _weights(masks.shape[1], size_hw[0])
    across = _weights(masks.shape[2], size_hw[1])
    resized: Floats = down @ masks.astype(np.float32) @ across.T
    return resized


@lru_cache(maxsize=32)
def _taps(
    length: int, size: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """For every position that comes out the two cells around it, and the weight of the second."""
    scale = np.float64(np.float32(length) / np.float32(size))  # rounded there, too
    centre = (scale * (np.arange(size) + 0.5) - 0.5).astype(np.float32)
    source = np.maximum(centre, np.float32(0))
    first = np.minimum(source.astype(np.intp), length - 1)
    weight = np.minimum(source - first.astype(np.float32), np.float32(1))
    return first, np.minimum(first + 1, length - 1), weight


@lru_cache(maxsize=32)
def _weights(length: int, size: int) -> npt.NDArray[np.float32]:
    """(size, length): shares of cells, triangles of at least a cell to either side."""
    scale = np.float32(length) / np.float32(size)
    reach = max(scale, np.float32(1))
    centres = (scale * (np.arange(size) + 0.5)).astype(np.float32)
    cells = np.arange(length) + 0.5
    shares = np.maximum(0, 1 - np.abs(cells[None] - centres[:, None]) / reach)
    # torch cuts a triangle where its rounded ends lie: of use only where a share is 0 anyway.
    weights: npt.NDArray[np.float32] = shares / shares.sum(axis=1, keepdims=True)
    return weights.astype(np.float32)
