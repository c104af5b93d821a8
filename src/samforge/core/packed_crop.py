"""One mask as the bits of a crop: eight pixels a byte, and nothing of the empty rest."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from samforge.core.rle import box_around
from samforge.core.runs import Crop

Bits = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]
_LEVEL = 1  # of zlib: 9 takes ten times as long and saves a fifth


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PackedCrop:
    """A mask that is empty outside a crop.

    Bytes begin at columns that 8 divides: two crops of one image overlap byte by byte, and what
    they share is counted without unpacking them.
    """

    top: int
    """Row of the crop's first pixel."""
    left: int
    """Column of its first pixel, a multiple of 8."""
    bits: Bits
    """(h, ceil(w / 8)), the leftmost pixel in the highest bit; 0 beyond the image."""

    @classmethod
    def from_crop(cls, crop: Crop, top_left: tuple[int, int]) -> PackedCrop:
        """Pack a crop (h, w) that begins at a row and a column."""
        top, left = top_left
        aligned, beside = left // 8 * 8, left % 8
        if beside:
            wide = np.zeros((crop.shape[0], beside + crop.shape[1]), np.bool_)
            wide[:, beside:] = crop
            crop = wide
        return cls(top=top, left=aligned, bits=_read_only(np.packbits(crop, axis=1)))

    @classmethod
    def from_mask(cls, mask: Crop) -> PackedCrop:
        """Pack what a mask (H, W) covers."""
        left, top, right, bottom = box_around(mask)
        return cls.from_crop(mask[top:bottom, left:right], (top, left))

    @property
    def extent(self) -> Box:
        """Left, top, right and bottom of what is stored, whole bytes: pixels outside it are 0."""
        rows, columns = self.bits.shape
        return self.left, self.top, self.left + 8 * columns, self.top + rows

    @property
    def box(self) -> Box:
        """Left, top, right and bottom of the pixels that are covered; zeros where none is."""
        rows = np.flatnonzero(self.bits.any(axis=1))
        if len(rows) == 0:
            return 0, 0, 0, 0
        columns = np.flatnonzero(np.unpackbits(np.bitwise_or.reduce(self.bits, axis=0)))
        left, right = self.left + int(columns[0]), self.left + int(columns[-1]) + 1
        return left, self.top + int(rows[0]), right, self.top + int(rows[-1]) + 1

    @property
    def area(self) -> int:
        """Pixels that are covered."""
        return int(np.bitwise_count(self.bits).sum(dtype=np.int64))

    def pixels(self, box: Box) -> Crop:
        """The pixels (h, w) inside a box that lies within the extent."""
        left, top, right, bottom = box
        first, last = (left - self.left) // 8, -(-(right - self.left) // 8)
        part = self.bits[top - self.top : bottom - self.top, first:last]
        beside = left - self.left - 8 * first
        wide = np.unpackbits(part, axis=1, count=beside + right - left)
        return wide[:, beside:].view(np.bool_)

    def overlap(self, other: PackedCrop) -> int:
        """Pixels that both masks of one image cover."""
        lefts, tops, rights, bottoms = zip(self.extent, other.extent, strict=True)
        left, top, right, bottom = max(lefts), max(tops), min(rights), min(bottoms)
        if left >= right or top >= bottom:
            return 0
        parts = [
            one.bits[
                top - one.top : bottom - one.top,
                (left - one.left) // 8 : (right - one.left) // 8,
            ]
            for one in (self, other)
        ]
        return int(np.bitwise_count(parts[0] & parts[1]).sum(dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Bytes that its pixels take."""
        return self.bits.nbytes

    def deflated(self) -> DeflatedCrop:
        """The same mask in a few hundred bytes to a few thousand, to be kept."""
        # A row as the difference to the one above it: contours go straight, so most of it is 0.
        rows = self.bits.copy()
        rows[1:] ^= self.bits[:-1]
        return DeflatedCrop(
            top=self.top,
            left=self.left,
            shape=(rows.shape[0], rows.shape[1]),
            data=zlib.compress(rows.tobytes(), _LEVEL),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DeflatedCrop:
    """A :class:`PackedCrop` that is kept for later."""

    top: int
    """As there."""
    left: int
    """As there."""
    shape: tuple[int, int]
    """Of its bits."""
    data: bytes
    """Each row as the difference to the one above, deflated."""

    @property
    def nbytes(self) -> int:
        """Bytes that its pixels take."""
        return len(self.data)

    def inflated(self) -> PackedCrop:
        """The crop as it was."""
        rows = np.frombuffer(zlib.decompress(self.data), np.uint8).reshape(self.shape)
        bits = np.bitwise_xor.accumulate(rows, axis=0)
        return PackedCrop(top=self.top, left=self.left, bits=_read_only(bits))


def _read_only(bits: Bits) -> Bits:
    bits.flags.writeable = False
    return bits
