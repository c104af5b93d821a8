"""Bilinear resize of a mask straight to booleans, bit for bit as torch does it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from samforge.core.runs import Crop

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]

_CHUNK_BYTES = 512 << 10  # of float32 rows: 4 MiB of them leave the cache and take 3 times as long
# Of the largest value: far above the rounding of a resize (6e-8), far below what a mask can tell.
_SLACK = 1e-6


def crop_above(
    values: Floats, threshold: np.float32, size_hw: tuple[int, int]
) -> tuple[Crop, tuple[int, int]]:
    """Compute ``interpolate(values, size_hw, bilinear, align_corners=False) > threshold``.

    The arithmetic follows torch's ``upsample_bilinear2d`` on a processor with fused multiply-add
    (aten/src/ATen/native/cpu/UpSampleKernel.cpp): along the rows first, then across them. Only
    the neighbourhood of values above the threshold is computed, some rows at a time, so memory
    beyond the crop stays at a few times ``_CHUNK_BYTES`` whatever the image size.

    Args:
        values: (h, w), finite: logits or probabilities.
        threshold: What a pixel has to exceed; infinite for all or none of them.
        size_hw: Height and width of the image.

    Returns:
        The crop outside which no pixel is above, bool, and row and column of its first pixel.
    """
    nothing = np.zeros((0, 0), np.bool_), (0, 0)
    # A mean of values below the threshold can pass it by rounding only.
    slack = np.float32(_SLACK * max(1.0, float(np.abs(values).max())))
    above = values > threshold - slack
    rows: npt.NDArray[np.bool_] = np.logical_or.reduce(above, axis=1)
    columns: npt.NDArray[np.bool_] = np.logical_or.reduce(above, axis=0)
    if not rows.any():
        return nothing
    top, bottom, row_0, row_1, row_weight = _taps(rows, size_hw[0])
    left, right, col_0, col_1, col_weight = _taps(columns, size_hw[1])
    if top == bottom or left == right:
        return nothing
    first = int(row_0[0])
    used = values[first : int(row_1[-1]) + 1]  # [h', w]
    wide = np.empty((len(used), right - left), np.float32)  # [h', W']
    step = max(1, _CHUNK_BYTES // (4 * wide.shape[1]))
    for start in range(0, len(used), step):
        part = used[start : start + step]
        wide[start : start + step] = _mixed(part[:, col_0], part[:, col_1], col_weight)
    row_0, row_1, row_weight = row_0 - first, row_1 - first, row_weight[:, None]
    crop = np.empty((bottom - top, right - left), np.bool_)
    for start in range(0, bottom - top, step):
        rows_of = slice(start, start + step)
        _mix_above(
            wide[row_0[rows_of]],
            wide[row_1[rows_of]],
            row_weight[rows_of],
            (threshold, slack),
            crop[rows_of],
        )
    return crop, (top, left)


def _mix_above(
    first: Floats,
    second: Floats,
    weight: Floats,
    limit: tuple[np.float32, np.float32],
    out: npt.NDArray[np.bool_],
) -> None:
    """Write ``_mixed(first, second, weight) > threshold``, all of (rows, columns).

    Plain float32 decides all pixels but those within its rounding of the threshold: the second
    number of ``limit``.
    """
    threshold, slack = limit
    rough = first * (np.float32(1) - weight)
    rough += second * weight
    np.greater(rough, threshold + slack, out=out)
    doubtful = (rough > threshold - slack) != out
    if not doubtful.any():  # ten times as fast as finding that there are none
        return
    rows, columns = np.nonzero(doubtful)
    exact = _mixed(first[rows, columns], second[rows, columns], weight[rows, 0])
    out[rows, columns] = exact > threshold


def _mixed(first: Floats, second: Floats, weight: Floats) -> Floats:
    """Compute ``fma(first, 1 - weight, second * weight)``.

    A product of two float32 is exact in float64, so rounding once at the end is what the fused
    instruction does.
    """
    share = (np.float32(1) - weight).astype(np.float64)
    mixed = first * share
    mixed += second * weight
    return mixed.astype(np.float32)


def _taps(used: npt.NDArray[np.bool_], size: int) -> tuple[int, int, Indices, Indices, Floats]:
    """Choose the output positions that touch a used source position.

    Returns:
        First output position and the one after the last; for each of them the two source
        positions and the weight of the second.
    """
    length = len(used)
    scale = np.float64(np.float32(length) / np.float32(size))
    centre = scale * (np.arange(size) + 0.5) - 0.5  # fused in torch too: rounded once, below
    source = np.maximum(centre.astype(np.float32), np.float32(0))
    before = np.minimum(source.astype(np.intp), length - 1)
    after = np.minimum(before + 1, length - 1)
    weight = np.minimum(source - before.astype(np.float32), np.float32(1))
    positions = np.flatnonzero(used)
    touching = np.flatnonzero((after >= positions[0]) & (before <= positions[-1]))
    if len(touching) == 0:  # shrinking can step over all of them
        return 0, 0, before[:0], after[:0], weight[:0]
    start, stop = int(touching[0]), int(touching[-1]) + 1
    return start, stop, before[start:stop], after[start:stop], weight[start:stop]
