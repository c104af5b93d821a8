"""Reads images of every common kind as RGB, and writes PNG."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from samforge.core.errors import ImageError, OutputError, ShapeError
from samforge.core.images import ImageSource, RgbImage
from samforge.core.outputs import SOFTWARE
from samforge.media._arrays import rgb_from_array
from samforge.media._pillow import MAX_PIXELS, rgb_from_file, rgb_from_pillow

__all__ = ["MAX_PIXELS", "SUFFIXES", "list_images", "read_image", "write_png"]

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".webp", ".tif", ".tiff"),
    *(".bmp", ".gif", ".ppm", ".pgm", ".jp2", ".avif"),
)
"""File name endings that ``list_images`` takes for images, in lower case."""


def read_image(source: ImageSource) -> RgbImage:
    """Read one image as 8-bit RGB, the way a viewer shows it.

    EXIF orientation is applied; grey, palette and CMYK become RGB; transparency is laid on white,
    as transformers' ``convert_to_rgb`` does; 16-bit values are scaled (65535 becomes 255), never
    clipped. Of an animation or a file of several pages, the first picture is read.

    Args:
        source: A path; the bytes of an image file; a Pillow image; or an array (H, W), (H, W, 1),
            (H, W, 3) or (H, W, 4) in RGB order: uint8, uint16 (0 to 65535), bool, or float within
            0 to 1.

    Returns:
        (H, W, 3), uint8. It shares memory with an array that already has this form.

    Raises:
        ImageError: There is no file, it is no image or broken, it has no pixels or more than
            ``MAX_PIXELS``, or the array has another form.
    """
    if isinstance(source, np.ndarray):
        return rgb_from_array(source)
    if isinstance(source, Image.Image):
        return rgb_from_pillow(source, f"The {source.mode} image")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return rgb_from_file(bytes(source), f"The {len(source)} bytes")
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        return rgb_from_file(_bytes_of(path), str(path))
    raise ImageError(
        f"Cannot read an image from {type(source).__name__}. Give a path, the bytes of an image "
        "file, a PIL.Image.Image or a numpy array."
    )


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ImageError(f"{path} does not exist (looked in {Path.cwd()}).") from error
    except IsADirectoryError as error:
        raise ImageError(
            f"{path} is a folder, not an image. Give one file of it; "
            "samforge.media.list_images(folder) lists them."
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise ImageError(f"{path} cannot be read: {error}.") from error


def write_png(path: str | os.PathLike[str], rgb: RgbImage) -> Path:
    """Write an RGB image as PNG: the whole file appears at once, or nothing does.

    Args:
        path: Where to; its folder must exist. An existing file is replaced.
        rgb: (H, W, 3), uint8.

    Returns:
        The path written.

    Raises:
        ShapeError: ``rgb`` has another form.
        OutputError: The folder is missing or read-only, or the disk is full.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0:
        raise ShapeError(f"write_png wants uint8 (H, W, 3), got {rgb.dtype} {rgb.shape}.")
    target = Path(path)
    notes = PngInfo()
    notes.add_text("Software", SOFTWARE)
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.part")
    try:
        try:
            with temporary.open("xb") as file:
                Image.fromarray(rgb).save(file, format="PNG", compress_level=3, pnginfo=notes)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"Cannot write {target}: {error.strerror or error}. "
            "Check that the folder exists, may be written and has space left."
        ) from error
    return target


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """List the image files directly in a folder, sorted by name, hidden ones left out.

    Raises:
        ImageError: It is no folder, or holds no image.
    """
    path = Path(folder)
    try:
        files = [entry for entry in path.iterdir() if entry.is_file()]
    except OSError as error:
        raise ImageError(
            f"{path} cannot be listed: {error.strerror}. Give a folder of images."
        ) from error
    images = sorted(
        file for file in files if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    )
    if not images:
        raise ImageError(
            f"{path} holds {len(files)} files and no image among them. "
            f"Images end in {', '.join(SUFFIXES)}."
        )
    return images
