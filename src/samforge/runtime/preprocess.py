"""From an RGB picture to the tensor a model sees."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from samforge.core.errors import ShapeError
from samforge.core.images import ImageSpec, RgbImage


def image_bchw_from_rgb(rgb: RgbImage, spec: ImageSpec) -> npt.NDArray[np.float32]:
    """Squash a picture to the model's square and normalize it.

    The aspect ratio is not kept, as in transformers' ``Sam3ImageProcessor``. The resize is
    bilinear with antialiasing on 8-bit values, by Pillow; torch's own differs by at most one grey
    level.

    Args:
        rgb: (H, W, 3), uint8, of any size from 1 x 1.
        spec: Size, mean and std that the model was trained with.

    Returns:
        (1, 3, size, size), float32, contiguous.

    Raises:
        ShapeError: ``rgb`` has another type or shape.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0:
        raise ShapeError(
            f"Preprocessing wants uint8 (H, W, 3), got {rgb.dtype} {rgb.shape}. "
            "samforge.media.read_image gives that of any picture."
        )
    square = (spec.size, spec.size)
    if rgb.shape[:2] != square:
        rgb = np.asarray(Image.fromarray(rgb).resize(square, Image.Resampling.BILINEAR))
    image_bchw = np.empty((1, 3, *square), np.float32)
    # A value has 256 cases: a table normalizes and splits the channels in one pass.
    for channel, table in enumerate(_normalized(spec)):
        # mode: uint8 cannot leave the table, and without it numpy buffers the output.
        np.take(table, rgb[:, :, channel], out=image_bchw[0, channel], mode="clip")
    return image_bchw


def _normalized(spec: ImageSpec) -> npt.NDArray[np.float32]:
    """Each value 0-255 normalized, (3, 256), rounded as transformers' fused rescale does."""
    mean = np.array(spec.mean, np.float32)[:, None] * np.float32(255)
    std = np.array(spec.std, np.float32)[:, None] * np.float32(255)
    table: npt.NDArray[np.float32] = (np.arange(256, dtype=np.float32) - mean) / std
    return table
