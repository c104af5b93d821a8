"""Masks of one image, kept as crops; dense only where it is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from samforge.core.errors import ShapeError
from samforge.core.packed_crop import Box, DeflatedCrop, PackedCrop
from samforge.core.rle import Segmentation, crop_from_segmentation, segmentation_from_crop
from samforge.core.runs import Crop

Dense: TypeAlias = npt.NDArray[np.bool_]
Index: TypeAlias = slice | Sequence[int] | Sequence[bool] | npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class Masks:
    """N masks of one image.

    100 masks of a 12-megapixel picture are 1.2 GB as booleans; here they take an eighth of the
    boxes around them. A mask does not change: what changes masks makes new ones.

    ``masks[i]`` and iteration give dense masks (H, W), one at a time; ``masks[a:b]`` and
    ``masks[[0, 2]]`` give Masks; ``np.asarray(masks)`` and :meth:`dense` give all, (N, H, W).

    Raises:
        ShapeError: A crop reaches outside the image.
    """

    size_hw: tuple[int, int]
    """Height and width of the image, pixels."""
    packed: tuple[PackedCrop | DeflatedCrop, ...]
    """One a mask."""

    def __post_init__(self) -> None:
        height, width = self.size_hw
        for one in self.packed:
            rows, columns = one.bits.shape if isinstance(one, PackedCrop) else one.shape
            bottom, right = one.top + rows, one.left + 8 * columns
            if one.left % 8 or min(one.left, one.top) < 0 or bottom > height or right >= width + 8:
                raise ShapeError(
                    f"Rows {one.top} to {bottom} and columns {one.left} to {right} of a mask do "
                    f"not lie inside an image of {self.size_hw} (H, W), or do not begin at a "
                    "multiple of 8. Masks.from_crops packs crops that begin anywhere."
                )

    @classmethod
    def from_dense(cls, masks: Dense) -> Masks:
        """Pack dense masks, bool (N, H, W).

        Raises:
            ShapeError: It is another array.
        """
        if masks.ndim != 3 or masks.dtype != np.bool_:
            raise ShapeError(f"Masks want bool (N, H, W), got {masks.dtype} {masks.shape}.")
        size_hw = (masks.shape[1], masks.shape[2])
        return cls(size_hw=size_hw, packed=tuple(map(PackedCrop.from_mask, masks)))

    @classmethod
    def from_crops(
        cls, crops: Iterable[tuple[Crop, tuple[int, int]]], size_hw: tuple[int, int]
    ) -> Masks:
        """Pack crops one by one: each is bool (h, w), with row and column of its first pixel.

        Raises:
            ShapeError: A crop reaches outside the image.
        """
        packed = []
        for crop, (top, left) in crops:
            bottom, right = top + crop.shape[0], left + crop.shape[1]
            if min(top, left) < 0 or bottom > size_hw[0] or right > size_hw[1]:
                raise ShapeError(
                    f"Rows {top} to {bottom} and columns {left} to {right} of a mask are not all "
                    f"inside an image of {size_hw} (H, W). Cut the crop at its edges."
                )
            packed.append(PackedCrop.from_crop(crop, (top, left)))
        return cls(size_hw=size_hw, packed=tuple(packed))

    @classmethod
    def from_rle(cls, segmentations: Iterable[Segmentation], size_hw: tuple[int, int]) -> Masks:
        """Read COCO segmentations, RLE or polygons, one by one.

        Raises:
            ShapeError: An RLE is of another image size.
            SettingError: A segmentation is damaged.
        """
        crops = (crop_from_segmentation(one, size_hw) for one in segmentations)
        return cls.from_crops(crops, size_hw)

    @classmethod
    def empty(cls, size_hw: tuple[int, int]) -> Masks:
        """No mask of an image of ``size_hw``."""
        return cls(size_hw=size_hw, packed=())

    @classmethod
    def concatenate(cls, parts: Sequence[Masks]) -> Masks:
        """Join masks of one image, in order; no pixel is copied.

        Raises:
            ShapeError: There is nothing to join, or the images differ in size.
        """
        sizes = sorted({part.size_hw for part in parts})
        if len(sizes) != 1:
            raise ShapeError(f"Masks of one image size can be joined, got sizes {sizes}.")
        return cls(size_hw=sizes[0], packed=tuple(one for part in parts for one in part.packed))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, H, W), of the dense masks."""
        return (len(self), *self.size_hw)

    @property
    def nbytes(self) -> int:
        """Bytes that the pixels take as they are kept."""
        return sum(one.nbytes for one in self.packed)

    @property
    def areas(self) -> npt.NDArray[np.int64]:
        """Pixels that each mask covers, (N,)."""
        return np.array([one.area for one in self._crops()], np.int64)

    @property
    def boxes(self) -> npt.NDArray[np.int64]:
        """Tight boxes, (N, 4): left, top, right, bottom in pixels; zeros for an empty mask."""
        return np.array([one.box for one in self._crops()], np.int64).reshape(-1, 4)

    def at(self, row: int, column: int) -> npt.NDArray[np.bool_]:
        """Which masks cover one pixel, (N,)."""
        covers = []
        for index in range(len(self)):
            crop, (top, left) = self.crop(index)
            inside = 0 <= row - top < crop.shape[0] and 0 <= column - left < crop.shape[1]
            covers.append(inside and bool(crop[row - top, column - left]))
        return np.array(covers, np.bool_)

    def crop(self, index: int) -> tuple[Crop, tuple[int, int]]:
        """One mask inside its tight box, bool (h, w), and row and column of its first pixel.

        An empty mask has (0, 0) pixels at (0, 0).
        """
        packed = self._crop(index)
        box = packed.box
        if box[2] == 0:
            return np.zeros((0, 0), np.bool_), (0, 0)
        return packed.pixels(box), (box[1], box[0])

    def rle(self, index: int) -> dict[str, Any]:
        """One mask as COCO's compressed RLE: ``size`` (height, width) and ``counts`` as text."""
        return segmentation_from_crop(*self.crop(index), self.size_hw)

    def dense(self) -> Dense:
        """All masks, bool (N, H, W): a byte for every pixel of every mask."""
        masks = np.zeros(self.shape, np.bool_)
        for mask, packed in zip(masks, self._crops(), strict=True):
            self._write(packed, mask)
        return masks

    def overlap(self, other: Masks) -> npt.NDArray[np.int64]:
        """Pixels that every pair shares, (N, M).

        Raises:
            ShapeError: The masks are of images of different sizes.
        """
        if self.size_hw != other.size_hw:
            raise ShapeError(
                f"IoU wants masks of one image size, got {self.size_hw} and {other.size_hw} (H, W)."
            )
        mine, theirs = tuple(self._crops()), tuple(other._crops())
        areas = [np.array([one.area for one in side], np.int64) for side in (mine, theirs)]
        overlap = np.zeros((len(mine), len(theirs)), np.int64)
        meet = _meet([one.extent for one in mine], [one.extent for one in theirs])
        for row, column in zip(*np.nonzero(np.multiply.outer(*areas) * meet), strict=True):
            overlap[row, column] = mine[row].overlap(theirs[column])
        return overlap

    def iou(self, other: Masks) -> npt.NDArray[np.float64]:
        """Overlap over union of every pair, (N, M); 0 where both masks are empty.

        Raises:
            ShapeError: The masks are of images of different sizes.
        """
        overlap = self.overlap(other)
        union = self.areas[:, None] + other.areas[None] - overlap
        iou: npt.NDArray[np.float64] = overlap / np.maximum(union, 1)
        return iou

    def compact(self) -> Masks:
        """The same masks in a hundredth of the memory, to be kept by the thousand.

        Whatever reads one of them unpacks it first, in about a millisecond.
        """
        packed = (one.deflated() if isinstance(one, PackedCrop) else one for one in self.packed)
        return Masks(size_hw=self.size_hw, packed=tuple(packed))

    def __len__(self) -> int:
        return len(self.packed)

    @overload
    def __getitem__(self, index: int | np.integer[Any]) -> Dense: ...
    @overload
    def __getitem__(self, index: Index) -> Masks: ...
    def __getitem__(self, index: int | np.integer[Any] | Index) -> Dense | Masks:
        """One dense mask (H, W) by an integer; Masks by a slice, integers, or N booleans.

        Raises:
            IndexError: An integer is outside -N to N-1, or the booleans are not N.
        """
        if isinstance(index, (int, np.integer)):
            mask = np.zeros(self.size_hw, np.bool_)
            self._write(self._crop(int(index)), mask)
            return mask
        chosen = positions(index, len(self))
        return Masks(size_hw=self.size_hw, packed=tuple(self.packed[i] for i in chosen))

    def __iter__(self) -> Iterator[Dense]:
        return (self[i] for i in range(len(self)))

    def __array__(
        self, dtype: npt.DTypeLike | None = None, copy: bool | None = None
    ) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError("Masks are packed: a dense array of them is a copy.")
        dense = self.dense()
        return dense if dtype is None else dense.astype(dtype, copy=False)

    def __eq__(self, other: object) -> bool:
        """Whether the masks are of equal size, number and pixels."""
        if not isinstance(other, Masks):
            return NotImplemented
        if self.shape != other.shape or not np.array_equal(self.boxes, other.boxes):
            return False
        pairs = ((self.crop(i)[0], other.crop(i)[0]) for i in range(len(self)))
        return all(np.array_equal(one, two) for one, two in pairs)

    __hash__ = None  # type: ignore[assignment]  # equal masks may be kept in different ways

    def __repr__(self) -> str:
        return f"Masks({len(self)} of {self.size_hw[0]} x {self.size_hw[1]} pixels)"

    def _crop(self, index: int) -> PackedCrop:
        one = self.packed[index]
        return one if isinstance(one, PackedCrop) else one.inflated()

    def _crops(self) -> Iterator[PackedCrop]:
        return (self._crop(i) for i in range(len(self)))

    def _write(self, packed: PackedCrop, mask: Dense) -> None:
        left, top, right, bottom = packed.extent
        right = min(right, self.size_hw[1])  # the last byte may reach over the edge
        mask[top:bottom, left:right] = packed.pixels((left, top, right, bottom))


def _meet(mine: Sequence[Box], theirs: Sequence[Box]) -> npt.NDArray[np.bool_]:
    """Which pairs of extents share a pixel, (N, M): most of a crowded picture's do not."""
    one, two = (np.array(boxes, np.int64).reshape(-1, 4) for boxes in (mine, theirs))
    low = np.maximum(one[:, None, :2], two[None, :, :2])
    high = np.minimum(one[:, None, 2:], two[None, :, 2:])
    return np.asarray((low < high).all(axis=2), np.bool_)


def positions(index: Index, count: int) -> npt.NDArray[np.intp]:
    """Which of ``count`` things an index chooses.

    Raises:
        IndexError: An integer is outside -count to count-1, or the booleans are not ``count``.
    """
    chosen = index if isinstance(index, slice) else np.asarray(index)
    # An empty list would become a float array, which numpy refuses as an index.
    if isinstance(chosen, np.ndarray) and chosen.size == 0 and chosen.dtype != np.bool_:
        chosen = chosen.astype(np.intp)
    return np.arange(count)[chosen]


def as_masks(masks: Masks | Dense) -> Masks:
    """Masks as they are, or packed from bool (N, H, W)."""
    return masks if isinstance(masks, Masks) else Masks.from_dense(masks)
