"""From a raster's own values to 8-bit RGB, the same for every window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from samforge.core.errors import ImageError, SettingError
from samforge.core.images import RgbImage
from samforge.rasters.source import Excerpt, RasterSource

FILL = 127
"""Grey of what is not there: beyond the raster, and where it holds no data."""

_PERCENTILES = (2.0, 98.0)
_OVERVIEW = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Stretch:
    """Which value becomes black and which white, in all bands alike."""

    low: float
    """Black."""
    high: float
    """White."""

    def __post_init__(self) -> None:
        if not -np.inf < self.low < self.high < np.inf:  # NaN fails too
            raise SettingError(
                f"A stretch goes from a lower number to a higher one, got {self.low:g} to "
                f"{self.high:g}. Write it like --stretch 0,3000."
            )


def stretch_from_text(text: str) -> Stretch | None:
    """Read a stretch as the command line takes it: ``auto`` (None), or ``0,3000``.

    Raises:
        SettingError: It is neither.
    """
    if text == "auto":
        return None
    numbers = text.split(",")
    try:
        low, high = map(float, numbers)
    except ValueError as error:
        raise SettingError(
            f"A stretch is auto, or two numbers for black and white, got {text!r:.80}. Write it "
            "like --stretch 0,3000."
        ) from error
    return Stretch(low=low, high=high)


def stretch_of(source: RasterSource) -> Stretch | None:
    """How a raster is shown: 8-bit values as they are, others from their 2nd to 98th percentile.

    Percentiles are those of an overview of the whole, over all chosen bands together: windows
    differ in nothing but what they show, and colours keep their balance.

    Raises:
        ImageError: The file is damaged.
    """
    if source.dtype == np.uint8:
        return None
    overview = source.shrunk(_OVERVIEW, smooth=False)
    if overview.valid is not None and not overview.valid.any():
        return Stretch(low=0.0, high=1.0)  # nothing will be shown
    values = overview.bands if overview.valid is None else overview.bands[:, overview.valid]
    low, high = (float(one) for one in np.percentile(values.astype(np.float64), _PERCENTILES))
    return Stretch(low=low, high=high if high > low else low + 1.0)


def picture_of(
    excerpt: Excerpt,
    stretch: Stretch | None,
    palette: npt.NDArray[np.uint8] | None,
    side: int | None = None,
) -> RgbImage:
    """What the model is shown.

    Args:
        excerpt: What was read.
        stretch: Black and white; None for 8-bit values as they are.
        palette: Colours that values stand for.
        side: Pixels of the square it is filled up to; None leaves it.

    Returns:
        (side, side, 3), the excerpt in its first rows and columns.
    """
    bands = excerpt.bands
    if palette is not None:
        bands = palette[bands[0]].transpose(2, 0, 1)
    elif stretch is not None:
        bands = _stretched(bands, stretch)
    elif bands.dtype != np.uint8:
        raise ImageError(f"Values of {bands.dtype} need a stretch, such as --stretch 0,3000.")
    height, width = bands.shape[1:]
    picture = np.full((side or height, side or width, 3), FILL, np.uint8)
    picture[:height, :width] = bands.transpose(1, 2, 0)  # a single band fills all three
    if excerpt.valid is not None:
        picture[:height, :width][~excerpt.valid] = FILL
    return picture


def _stretched(bands: npt.NDArray[Any], stretch: Stretch) -> npt.NDArray[np.uint8]:
    scale = 255.0 / (stretch.high - stretch.low)
    # float64 where float32 could not hold the values' own steps.
    grey: Any = bands.astype(np.float64 if bands.dtype.itemsize > 2 else np.float32)
    grey -= stretch.low
    grey *= scale
    shown: npt.NDArray[np.uint8] = (
        np.nan_to_num(grey, nan=0.0).clip(0, 255).round().astype(np.uint8)
    )
    return shown
