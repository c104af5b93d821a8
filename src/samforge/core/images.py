"""What an image is to samforge: where it may come from and the form a part wants it in."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from samforge.core.errors import SettingError

RgbImage: TypeAlias = npt.NDArray[np.uint8]
"""(H, W, 3), red first, 0 to 255."""


class PillowImage(Protocol):
    """A ``PIL.Image.Image``, named here without importing Pillow."""

    @property
    def mode(self) -> str:
        """Pixel format: ``RGB``, ``L``, ``I;16``, …"""
        ...

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        ...


ImageSource: TypeAlias = str | os.PathLike[str] | bytes | PillowImage | npt.NDArray[Any]
"""A path, the bytes of an image file, a Pillow image, or an (H, W[, C]) array in RGB order."""
FILES = (str, os.PathLike, bytes)
"""Those that have to be decoded, and that nobody fills with other pixels meanwhile."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSpec:
    """How a model wants its images: square, and normalized as ``(value / 255 - mean) / std``."""

    size: int
    """Side of the square the image is squashed to, pixels."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Mean of red, green and blue, in units of 0 to 1."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Standard deviation of red, green and blue, in units of 0 to 1."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise SettingError(f"Image size is {self.size}. Give a side of at least 1 pixel.")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3 or not all(np.isfinite(values)):
                raise SettingError(
                    f"Image {name} is {values}. Give three finite numbers: red, green, blue."
                )
        if min(self.std) <= 0:
            raise SettingError(f"Image std is {self.std}. Every channel must be above 0.")
