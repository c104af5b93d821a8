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
    tall = _along_rows(masks.astype(np.float32, copy=False), size_hw[0])
    return _along_rows(tall.swapaxes(1, 2), size_hw[1]).swapaxes(1, 2)


def _along_rows(masks: Floats, size: int) -> Floats:
    """(N, h, w) as (N, size, w): a sum over the few cells that each place is made of."""
    cells, shares = _shares(masks.shape[1], size)
    resized: Floats = masks[:, cells[0]] * shares[0][:, None]
    for cell, share in zip(cells[1:], shares[1:], strict=True):
        resized += masks[:, cell] * share[:, None]
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
def _shares(length: int, size: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """(K, size) each: the cells that every place is made of, and their shares, a triangle's."""
    scale = np.float32(length) / np.float32(size)
    reach = max(scale, np.float32(1))
    centres = (scale * (np.arange(size) + 0.5)).astype(np.float32)
    first = np.floor(centres - reach).astype(np.intp)
    cells = first[None] + np.arange(int(np.ceil(2 * reach)) + 2)[:, None]
    shares = np.maximum(0, 1 - np.abs(cells + 0.5 - centres) / reach)
    shares[(cells < 0) | (cells >= length)] = 0
    weights = (shares / shares.sum(axis=0)).astype(np.float32)
    used = weights.any(axis=1)
    return cells.clip(0, length - 1)[used], weights[used]
