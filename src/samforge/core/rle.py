"""COCO's run-length encoding of one mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from samforge.core.errors import SettingError, ShapeError


def segmentation_from_mask(mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Encode one (H, W) mask as COCO's compressed RLE, with ``counts`` as text for JSON."""
    # Lazy: importing samforge.core must load nothing but numpy.
    from pycocotools import mask as coco

    encoded = coco.encode(np.asfortranarray(mask.view(np.uint8)))
    return {"size": [int(n) for n in mask.shape], "counts": encoded["counts"].decode("ascii")}


def mask_from_segmentation(
    segmentation: Mapping[str, Any] | Sequence[Sequence[float]], size_hw: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    """Decode a COCO segmentation: RLE (text, bytes or plain counts) or polygons.

    Raises:
        ShapeError: The RLE is of another image size.
        SettingError: It is no segmentation, or its counts do not fill the image.
    """
    if isinstance(segmentation, Mapping):
        if not {"size", "counts"} <= set(segmentation):
            raise SettingError(
                f"An RLE needs size and counts, got the keys {sorted(segmentation)}."
            )
        size, counts = tuple(segmentation["size"]), segmentation["counts"]
        if size != size_hw:
            raise ShapeError(f"The RLE is of an image of {size} (H, W), the image is {size_hw}.")
        if isinstance(counts, (str, bytes)):
            counts = _counts_from_text(counts.encode() if isinstance(counts, str) else counts)
        return _mask_from_counts(counts, size_hw)
    if isinstance(segmentation, (str, bytes)) or not isinstance(segmentation, Sequence):
        raise SettingError(
            f"A segmentation is an RLE dictionary or a list of polygons, got {segmentation!r}."
        )
    from pycocotools import mask as coco

    merged = coco.merge(coco.frPyObjects(list(segmentation), *size_hw))
    return _mask_from_counts(_counts_from_text(merged["counts"]), size_hw)


def _mask_from_counts(counts: Sequence[int], size_hw: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Lay out runs of 0 and 1 in turn, down the columns.

    Not pycocotools' ``decode``: 2.0.11 warns under numpy 2, and trusts the counts.
    """
    runs = np.asarray(counts, np.int64)
    height, width = size_hw
    if (runs < 0).any() or runs.sum() != height * width:
        raise SettingError(
            f"The counts of an RLE add up to {runs.sum()}, an image of {size_hw} (H, W) has "
            f"{height * width} pixels. The RLE is damaged."
        )
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return np.ascontiguousarray(flat.reshape(width, height).T)


def _counts_from_text(text: bytes) -> list[int]:
    """Read compressed counts: 5 bits a character, lowest first, differences to the last but one.

    The format is ``rleFrString`` of https://github.com/cocodataset/cocoapi, common/maskApi.c.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = character - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:  # more characters follow
            continue
        if bits & 0x10:  # negative: extend the sign
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return counts
