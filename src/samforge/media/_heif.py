"""HEIC and HEIF pictures, as telephones write them, with the extra ``heic``."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from samforge.core.errors import MissingExtra

SUFFIXES = (".heic", ".heif", ".hif")
"""Endings of their names, in lower case."""
_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}


def is_heif(data: bytes) -> bool:
    """Whether a file holds HEVC-coded pictures: its ``ftyp`` box names one of their brands.

    AVIF has the same box with other brands. The format: ISO/IEC 23008-12, section 10.
    """
    if data[4:8] != b"ftyp":
        return False
    end = min(int.from_bytes(data[:4], "big"), 256)
    brands = {data[start : start + 4] for start in (8, *range(16, end, 4))}
    return bool(brands & _BRANDS)


def opened_heif(data: bytes, name: str) -> Image.Image:
    """Open a file; nothing is registered with Pillow, whose formats are the whole process's.

    Raises:
        MissingExtra: pillow-heif is not installed.
    """
    try:
        import pillow_heif
    except ImportError as error:
        raise MissingExtra(f"{name} is a HEIC picture, and pillow-heif", "heic") from error
    heif: Any = pillow_heif
    image: Image.Image = heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=True).to_pillow()
    return image
