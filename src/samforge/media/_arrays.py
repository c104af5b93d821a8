"""8-bit RGB from numpy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from samforge.core.errors import ImageError
from samforge.core.images import RgbImage

# 65535 is 255 * 257: the inverse of the widening that PNG prescribes, rounded to nearest.
_NARROWED = ((np.arange(65536) + 128) // 257).astype(np.uint8)


def rgb_from_array(array: npt.NDArray[Any]) -> RgbImage:
    """Bring an (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) array to uint8 (H, W, 3).

    Raises:
        ImageError: Another shape or type, no pixels, or floats outside 0 to 1.
    """
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        hint = ""
        if array.ndim == 3 and array.shape[0] in (1, 3, 4):
            hint = " Channels come last: array.transpose(1, 2, 0)."
        elif array.ndim == 4:
            hint = " Give the images of a batch one by one."
        raise ImageError(
            "An image array has the shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), "
            f"got {array.shape}.{hint}"
        )
    if array.size == 0:
        raise ImageError(f"The image array has no pixels: its shape is {array.shape}.")
    values = eight_bit(array)
    if values.ndim == 2:
        values = values[:, :, None]
    if values.shape[2] == 1:
        return np.ascontiguousarray(np.broadcast_to(values, (*values.shape[:2], 3)))
    if values.shape[2] == 4:
        return rgb_on_white(Image.fromarray(np.ascontiguousarray(values)))
    return np.ascontiguousarray(values)


def eight_bit(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Scale values to 0-255; integers of another size have no known range and are refused."""
    scaled: npt.NDArray[np.uint8]
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        scaled = _NARROWED[array]
        return scaled
    if array.dtype == np.bool_:
        return np.where(array, np.uint8(255), np.uint8(0))
    if np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if not (low >= 0.0 and high <= 1.0):  # written so that NaN fails too
            raise ImageError(
                f"A float image has values within 0 to 1, got {low:g} to {high:g}. "
                "Scale it first, or give uint8."
            )
        # float32 for all: 255 times a float16 near 1 has no room for the rounding.
        scaled = np.rint(array.astype(np.float32, copy=False) * np.float32(255)).astype(np.uint8)
        return scaled
    raise ImageError(
        f"An image array is uint8, uint16, bool or float within 0 to 1, got {array.dtype}. "
        "Convert it first: array.astype('uint8')."
    )


def rgb_on_white(image: Image.Image) -> RgbImage:
    """Lay an RGBA picture on white."""
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, image).convert("RGB"))
