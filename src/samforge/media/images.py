"""Reads images of every common kind as RGB, and writes PNG."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from samforge.core.errors import ImageError, OutputError, ShapeError
from samforge.core.images import ImageSource, RgbImage
from samforge.core.outputs import SOFTWARE
from samforge.core.paths import checked_path, is_file, is_folder
from samforge.core.placing import part_beside
from samforge.media._arrays import rgb_from_array
from samforge.media._heif import SUFFIXES as HEIF_SUFFIXES
from samforge.media._pillow import MAX_PIXELS, rgb_from_file, rgb_from_pillow

__all__ = [
    "MAX_PIXELS",
    "SUFFIXES",
    "Listing",
    "list_images",
    "listing_of_folder",
    "read_image",
    "write_png",
]

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".webp", ".tif", ".tiff"),
    *(".bmp", ".gif", ".ppm", ".pgm", ".jp2", ".avif"),
    *HEIF_SUFFIXES,
)
"""File name endings that ``list_images`` takes for images, in lower case."""


def read_image(source: ImageSource, *, max_pixels: int | None = None) -> RgbImage:
    """Read one image as 8-bit RGB, the way a viewer shows it.

    EXIF orientation is applied; grey, palette and CMYK become RGB; transparency is laid on white,
    as transformers' ``convert_to_rgb`` does; 16-bit values are scaled (65535 becomes 255), never
    clipped. Of an animation or a file of several pages, the first picture is read.

    Args:
        source: A path; the bytes of an image file; a Pillow image; or an array (H, W), (H, W, 1),
            (H, W, 3) or (H, W, 4) in RGB order: uint8, uint16 (0 to 65535), bool, or float within
            0 to 1.
        max_pixels: Of a file or a Pillow image: larger ones are refused before they are decoded;
            None takes ``MAX_PIXELS``.

    Returns:
        (H, W, 3), uint8. It shares memory with an array that already has this form.

    Raises:
        ImageError: There is no file, it is no image or broken, it has no pixels or more than
            ``max_pixels``, or the array has another form.
        MissingExtra: It is a HEIC picture, and what reads them is not installed.
    """
    if isinstance(source, np.ndarray):
        return rgb_from_array(source)
    if isinstance(source, Image.Image):
        return rgb_from_pillow(source, f"The {source.mode} image", max_pixels)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return rgb_from_file(bytes(source), f"The {len(source)} bytes", max_pixels)
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        return rgb_from_file(_bytes_of(path), str(path), max_pixels)
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
    target = checked_path(path, OutputError)
    notes = PngInfo()
    notes.add_text("Software", SOFTWARE)
    temporary = part_beside(target)
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """What a folder holds, and what of it is not among the images."""

    images: tuple[Path, ...]
    """Image files, sorted."""
    folders: tuple[Path, ...]
    """Folders in it that were not looked into."""
    others: tuple[Path, ...]
    """Files that are no images by their names."""


def listing_of_folder(folder: str | os.PathLike[str], *, recursive: bool = False) -> Listing:
    """List the image files of a folder, sorted, hidden ones left out, and what was left out.

    Args:
        folder: The folder.
        recursive: Whether to look into the folders in it as well; links to folders are named and
            not followed, because they may lead in a circle.

    Raises:
        ImageError: It is no folder, or cannot be listed.
    """
    path = checked_path(folder, ImageError)
    images: list[Path] = []
    folders: list[Path] = []
    others: list[Path] = []
    waiting = [path]
    while waiting:
        place = waiting.pop()
        try:
            entries = sorted(place.iterdir())
        except OSError as error:
            if place != path:
                folders.append(place)
                continue
            raise ImageError(
                f"{path} cannot be listed: {error.strerror}. Give a folder of images."
            ) from error
        inner: list[Path] = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if is_folder(entry):
                (inner if recursive and not entry.is_symlink() else folders).append(entry)
            elif entry.suffix.lower() in SUFFIXES:
                # A link that leads nowhere is named when it is read.
                (images if is_file(entry) or entry.is_symlink() else others).append(entry)
            else:
                others.append(entry)
        waiting += reversed(inner)
    return Listing(images=tuple(images), folders=tuple(folders), others=tuple(others))


def list_images(folder: str | os.PathLike[str], *, recursive: bool = False) -> list[Path]:
    """List the image files in a folder, sorted by name, hidden ones left out.

    Args:
        folder: The folder.
        recursive: Whether to look into the folders in it as well.

    Raises:
        ImageError: It is no folder, or holds no image.
    """
    listing = listing_of_folder(folder, recursive=recursive)
    if listing.images:
        return list(listing.images)
    inner = f" and {len(listing.folders)} folders" if listing.folders else ""
    hint = " Look into the folders as well: --recursive." if listing.folders else ""
    raise ImageError(
        f"{folder} holds {len(listing.others)} files{inner} and no image among them. "
        f"Images end in {', '.join(SUFFIXES)}.{hint}"
    )
