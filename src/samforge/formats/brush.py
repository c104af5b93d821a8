"""Masks in Label Studio's packing of runs, as its brush draws and reads them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from samforge.core.runs import Crop

_SIZES = np.array([3, 4, 8, 16])
_LONGEST = 1 << 16
_HEAD_BITS = 32 + 5 + 4 * len(_SIZES)


def brush_rle(crop: Crop, top_left: tuple[int, int], size_hw: tuple[int, int]) -> list[int]:
    """Pack a mask as Label Studio packs the RGBA pixels of a brush.

    The format is that of thi.ng's rle-pack, whose reader label-studio-sdk quotes in
    ``converter/brush.py``: 32 bits for the number of values, 5 for their width less one, four times
    4 for the widths of lengths less one; then runs, each a bit that says that its values are alike,
    two bits for the width of its length, the length less one, and the value. A pixel is four
    values.

    Args:
        crop: bool (h, w).
        top_left: Row and column of its first pixel.
        size_hw: Height and width of the picture.

    Returns:
        Bytes.
    """
    lengths, values = _runs(crop, top_left, size_hw)
    kinds = np.searchsorted(1 << _SIZES, lengths)
    codes = (4 + kinds).astype(np.uint64)  # the bit of alike values, and the width's two
    codes = (codes << _SIZES[kinds].astype(np.uint64)) | (lengths - 1).astype(np.uint64)
    codes = (codes << np.uint64(8)) | values.astype(np.uint64)
    head = 4 * size_hw[0] * size_hw[1] << 5 | (8 - 1)
    for size in _SIZES.tolist():
        head = head << 4 | (size - 1)
    bits = np.concatenate([_bits(codes, 3 + _SIZES[kinds] + 8)])
    first = np.array([int(one) for one in f"{head:0{_HEAD_BITS}b}"], np.uint8)
    packed: list[int] = np.packbits(np.concatenate([first, bits])).tolist()
    return packed


def _runs(
    crop: Crop, top_left: tuple[int, int], size_hw: tuple[int, int]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Lengths of runs along the picture's rows, and their values, 0 and 255 in turn."""
    (height, width), (top, left) = size_hw, top_left
    rows, columns = np.nonzero(np.diff(np.pad(crop, ((0, 0), (1, 1))).astype(np.int8), axis=1))
    edges = (rows + top) * width + columns + left
    lengths = np.diff(edges, prepend=0, append=height * width) * 4
    values = np.where(np.arange(len(lengths)) % 2 == 1, 255, 0)
    pieces = -(-lengths // _LONGEST)  # none where a run is empty
    values = np.repeat(values, pieces)
    split = np.full(len(values), _LONGEST, np.int64)
    ends = np.cumsum(pieces) - 1
    kept = pieces > 0
    split[ends[kept]] = lengths[kept] - (pieces[kept] - 1) * _LONGEST
    return split, values


def _bits(codes: npt.NDArray[np.uint64], widths: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """The last bits of each code, as many as its width, one after another."""
    bits = np.unpackbits(codes.astype(">u8").view(np.uint8)).reshape(-1, 64)
    wanted = np.arange(64) >= 64 - widths[:, None]
    found: npt.NDArray[np.uint8] = bits[wanted]
    return found
