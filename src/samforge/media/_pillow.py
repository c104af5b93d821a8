"""8-bit RGB from image files and Pillow images."""

from __future__ import annotations

import io
import warnings
from threading import Lock

import numpy as np
from PIL import ExifTags, Image, ImageOps

from samforge.core.errors import ImageError, MissingExtra
from samforge.core.images import RgbImage
from samforge.media._arrays import eight_bit, rgb_from_array, rgb_on_white
from samforge.media._heif import is_heif, opened_heif
from samforge.media._pillow_pixels import rgb_pixels

MAX_PIXELS = 178_000_000
"""Pixels that an image may have: a 108-megapixel photograph is fine, a decompression bomb is not.

Just below the point where Pillow refuses by itself (178,956,970)."""

# Formats that are decoded in this process. EPS, for one, would start Ghostscript.
_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")
_ONE_FILTER = Lock()


def rgb_from_file(data: bytes, name: str, max_pixels: int | None = None) -> RgbImage:
    """Decode an image file.

    Args:
        data: The whole file.
        name: What the messages call it.
        max_pixels: Larger ones are refused; None takes ``MAX_PIXELS``.

    Raises:
        ImageError: It is no image of a known format, broken, or too large.
        MissingExtra: It is a HEIC picture, and what reads them is not installed.
    """
    if not data:
        raise ImageError(f"{name} is empty: 0 bytes.")
    with _opened(data, name) as image:
        return rgb_from_pillow(image, name, max_pixels)


def _opened(data: bytes, name: str) -> Image.Image:
    # Image.open warns of a decompression bomb from 89 megapixels on, and only process-wide state
    # (Image.MAX_IMAGE_PIXELS, warnings.filters) would keep it quiet. Its registry of formats does
    # the same without the warning; rgb_from_pillow counts the pixels before any is decoded.
    if is_heif(data):
        try:
            return opened_heif(data, name)
        except MissingExtra:
            raise
        except Exception as error:  # its decoder raises what it likes
            raise ImageError(
                f"{name} looks like HEIC but cannot be opened: {_reason(error)}. "
                "The file is damaged or was not transferred whole."
            ) from error
    Image.init()
    for name_of_format in _FORMATS:
        if name_of_format not in Image.OPEN:
            continue  # this Pillow was built without it
        factory, accept = Image.OPEN[name_of_format]
        accepted = accept(data[:16]) if accept is not None else True
        if isinstance(accepted, str) or not accepted:  # a text says what this Pillow lacks
            continue
        try:
            return factory(io.BytesIO(data), "")
        except Exception as error:  # decoders raise what they like: AVIF's a plain RuntimeError
            raise ImageError(
                f"{name} looks like {name_of_format} but cannot be opened: {_reason(error)}. "
                "The file is damaged or was not transferred whole."
            ) from error
    raise ImageError(
        f"{name} is not an image that samforge reads (it begins with {data[:8]!r}). "
        f"Give one of {', '.join(_FORMATS)}, HEIC."
    )


def rgb_from_pillow(image: Image.Image, name: str, max_pixels: int | None = None) -> RgbImage:
    """Decode, turn upright and convert a Pillow image, which stays as it is.

    Raises:
        ImageError: It is broken, empty, too large, or of a mode without a known range.
    """
    width, height = image.size
    if width * height == 0:
        raise ImageError(f"{name} has no pixels: it is {width} x {height}.")
    most = MAX_PIXELS if max_pixels is None else max_pixels
    if width * height > most:
        raise ImageError(
            f"{name} has {width} x {height} = {width * height:,} pixels, "
            f"at most {most:,} are read. Shrink it or cut it into tiles first."
        )
    try:
        _load(image)
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            image = ImageOps.exif_transpose(image)
        return _rgb(image, name)
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(
            f"{name} has {width} x {height} pixels, and there is no memory left to decode them. "
            "Shrink it or cut it into tiles first."
        ) from error
    except Exception as error:  # on damaged data decoders raise what they like
        raise ImageError(
            f"{name} cannot be decoded: {_reason(error)}. "
            "The file is damaged or was not transferred whole."
        ) from error


def _load(image: Image.Image) -> None:
    if image.width * image.height <= (Image.MAX_IMAGE_PIXELS or MAX_PIXELS):
        image.load()
        return
    # Some decoders (TIFF) count the pixels again and warn. The filter is process-wide while it
    # lasts, so it is set only for the few pictures that need it, one after the other: of two
    # threads, the second would put back what the first has set.
    with _ONE_FILTER, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image.load()


def _rgb(image: Image.Image, name: str) -> RgbImage:
    # Pillow's own conversion of these modes clips at 255 instead of scaling.
    if image.mode.startswith("I;16"):
        grey = np.asarray(image)
        return rgb_from_array(grey.astype(np.uint16, copy=False))
    if image.mode == "I":
        wide = np.asarray(image)
        low, high = int(wide.min()), int(wide.max())
        if low < 0 or high > 65535:
            raise ImageError(
                f"{name} holds 32-bit values of {low} to {high}, a range without a known white. "
                "Convert it to 8 or 16 bit first."
            )
        return rgb_from_array(wide.astype(np.uint16))
    if image.mode == "F":
        return rgb_from_array(eight_bit(np.asarray(image)))
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        return rgb_on_white(image.convert("RGBA"))
    return rgb_pixels(image if image.mode == "RGB" else image.convert("RGB"))


def _reason(error: BaseException) -> str:
    return (str(error) or type(error).__name__).rstrip(".")
