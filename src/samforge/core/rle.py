"""COCO's run-length encoding of one mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from samforge.core.errors import SettingError, ShapeError
from samforge.core.polygons import checked_polygons
from samforge.core.runs import Crop, counts_from_crop, crop_from_counts

Segmentation: TypeAlias = Mapping[str, Any] | Sequence[Sequence[float]]
"""COCO's: an RLE or polygons."""

MOST_PIXELS = 1 << 31
"""Pixels of an image whose masks are decoded: pycocotools counts them in 32 bits."""
_MOST_BITS = 60  # of one count: more than any image has pixels, and no integer grows without end


def segmentation_from_mask(mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Encode one (H, W) mask as COCO's compressed RLE, with ``counts`` as text for JSON."""
    height, width = mask.shape
    left, top, right, bottom = box_around(mask)
    return segmentation_from_crop(mask[top:bottom, left:right], (top, left), (height, width))


def segmentation_from_crop(
    crop: npt.NDArray[np.bool_], top_left: tuple[int, int], size_hw: tuple[int, int]
) -> dict[str, Any]:
    """Encode a mask that is empty outside a crop, as :func:`segmentation_from_mask` does.

    Args:
        crop: (h, w).
        top_left: Row and column of its first pixel.
        size_hw: Height and width of the image; the crop lies inside it.
    """
    # Lazy: importing samforge.core must load nothing but numpy.
    from pycocotools import mask as coco

    size = [int(side) for side in size_hw]
    counts = counts_from_crop(crop, top_left, size_hw)
    encoded = coco.frPyObjects({"size": size, "counts": counts}, *size)
    return {"size": size, "counts": encoded["counts"].decode("ascii")}


def box_around(mask: npt.NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what a mask covers, the last two outside; zeros if nothing."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def mask_from_segmentation(segmentation: Segmentation, size_hw: tuple[int, int]) -> Crop:
    """Decode a COCO segmentation to a mask (H, W): see :func:`crop_from_segmentation`."""
    size_hw = _checked_size(size_hw)
    crop, (top, left) = crop_from_segmentation(segmentation, size_hw)
    mask = np.zeros(size_hw, np.bool_)
    mask[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
    return mask


def crop_from_segmentation(
    segmentation: Segmentation, size_hw: tuple[int, int]
) -> tuple[Crop, tuple[int, int]]:
    """Decode a COCO segmentation: RLE (text, bytes or plain counts) or polygons.

    Nothing of it is believed: types, finiteness, ranges and sums are checked before memory is
    taken for it or compiled code sees it.

    Returns:
        The crop that holds the mask, (h, w), and row and column of its first pixel.

    Raises:
        ShapeError: The RLE is of another image size.
        SettingError: It is no segmentation, its counts do not fill the image, or a polygon is far
            outside it.
    """
    size_hw = _checked_size(size_hw)
    return crop_from_counts(_counts_from_segmentation(segmentation, size_hw), size_hw)


def _counts_from_segmentation(segmentation: Segmentation, size_hw: tuple[int, int]) -> list[int]:
    if isinstance(segmentation, Mapping):
        return _counts_from_rle(segmentation, size_hw)
    if isinstance(segmentation, (str, bytes)) or not isinstance(segmentation, Sequence):
        raise SettingError(
            f"A segmentation is an RLE dictionary or a list of polygons, got {segmentation!r:.80}."
        )
    polygons = [one.tolist() for one in checked_polygons(segmentation, size_hw)]
    from pycocotools import mask as coco

    merged = coco.merge(coco.frPyObjects(polygons, *size_hw))
    return _filling(_counts_from_text(merged["counts"]), size_hw)


def _checked_size(size_hw: object) -> tuple[int, int]:
    """Height and width, each a whole number from 1, and no more pixels than RLE can count."""
    size = tuple(size_hw) if isinstance(size_hw, Sequence) else ()
    if len(size) != 2 or not all(_is_whole(side) and side >= 1 for side in size):
        raise ShapeError(f"The size of an image is (height, width) in pixels, got {size_hw!r:.80}.")
    height, width = int(size[0]), int(size[1])
    if height * width > MOST_PIXELS:
        raise ShapeError(
            f"An image of {height} x {width} pixels has more than {MOST_PIXELS:,}, the most that a "
            "run-length encoding is read of."
        )
    return height, width


def _counts_from_rle(rle: Mapping[str, Any], size_hw: tuple[int, int]) -> list[int]:
    if not {"size", "counts"} <= set(rle):
        keys = ", ".join(sorted(map(str, rle))) or "nothing"
        raise SettingError(f"An RLE needs size and counts, got the keys {keys:.80}.")
    size = _checked_size(rle["size"])
    if size != size_hw:
        raise ShapeError(f"The RLE is of an image of {size} (H, W), the image is {size_hw}.")
    counts = rle["counts"]
    if isinstance(counts, str):
        try:
            counts = counts.encode("ascii")
        except UnicodeEncodeError as error:
            raise SettingError(
                f"The counts of an RLE are ASCII text, got {counts!r:.80}."
            ) from error
    if isinstance(counts, bytes):
        return _filling(_counts_from_text(counts), size_hw)
    if not isinstance(counts, Sequence | np.ndarray) or not all(map(_is_whole, counts)):
        raise SettingError(
            f"The counts of an RLE are text or a list of whole numbers, got {counts!r:.80}."
        )
    return _filling([int(count) for count in counts], size_hw)


def _filling(counts: list[int], size_hw: tuple[int, int]) -> list[int]:
    """Counts that fill the image exactly; pycocotools' ``decode`` would trust them."""
    height, width = size_hw
    total = sum(counts)  # of Python's integers: 64 bits would wrap around
    if min(counts, default=0) < 0 or total != height * width:
        raise SettingError(
            f"The counts of an RLE add up to {_short(total)}, an image of {size_hw} (H, W) has "
            f"{height * width} pixels. The RLE is damaged."
        )
    return counts


def _counts_from_text(text: bytes) -> list[int]:
    """Read compressed counts: 5 bits a character, lowest first, differences to the last but one.

    The format is ``rleFrString`` of https://github.com/cocodataset/cocoapi, common/maskApi.c.
    """
    counts: list[int] = []
    value = shift = 0
    for place, character in enumerate(text):
        bits = character - 48
        if not 0 <= bits < 64 or shift > _MOST_BITS:
            raise SettingError(
                f"The counts of an RLE cannot be read at character {place}: "
                f"{text[max(0, place - 8) : place + 8]!r}. The RLE is damaged."
            )
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:  # more characters follow
            continue
        if bits & 0x10:  # negative: extend the sign
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise SettingError("The counts of an RLE end within a number. The RLE is damaged.")
    return counts


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _short(number: int) -> str:
    """A number for a message; Python refuses to write those of thousands of digits."""
    return str(number) if abs(number) < 10**20 else "more than 10^20"
