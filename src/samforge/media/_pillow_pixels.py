"""Pixels of Pillow images, copied while other threads run.

``numpy.asarray(image)`` has Pillow pack every row under the interpreter's lock: milliseconds of a
picture of 1920 x 1080, in which no other thread of a server starts anything. Pillow shows its own
memory through Arrow's C data interface, four bytes a pixel, and numpy copies without the lock.

https://arrow.apache.org/docs/format/CDataInterface.html
"""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt
from PIL import Image

from samforge.core.images import RgbImage

_CHANNELS, _STORED = 3, 4


def rgb_pixels(image: Image.Image) -> RgbImage:
    """Copy the pixels of an image of the mode RGB.

    Pillow shows memory of one block: up to some 4 megapixels. Of larger images, and by a Pillow
    before 11.2, rows are packed as ever.

    Returns:
        uint8 (H, W, 3).
    """
    try:
        capsules = image.__arrow_c_array__()  # they own the memory
    except (AttributeError, ValueError):
        return np.asarray(image)
    stored = _view(capsules[1], image.height, image.width)
    pixels = np.empty((image.height, image.width, _CHANNELS), np.uint8)
    for channel in range(_CHANNELS):  # numpy takes seven times as long for all at once
        pixels[..., channel] = stored[..., channel]
    return pixels


class _ArrowArray(ctypes.Structure):
    """``struct ArrowArray``, as the interface defines it."""


_ArrowArray._fields_ = [
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
    ("dictionary", ctypes.c_void_p),
    ("release", ctypes.c_void_p),
    ("private_data", ctypes.c_void_p),
]
_pointer_from_capsule = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def _view(capsule: object, height: int, width: int) -> npt.NDArray[np.uint8]:
    """uint8 (H, W, 4) over a list of four bytes a pixel; valid as long as its capsule."""
    address = _pointer_from_capsule(capsule, b"arrow_array")
    pixels = ctypes.cast(address, ctypes.POINTER(_ArrowArray)).contents
    values = pixels.children[0].contents
    begin = values.buffers[1] + values.offset + pixels.offset * _STORED
    memory = (ctypes.c_uint8 * (height * width * _STORED)).from_address(begin)
    return np.ctypeslib.as_array(memory).reshape(height, width, _STORED)
