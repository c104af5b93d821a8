"""Images on their way through the parts: taken over, or encoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from samforge.core.errors import ShapeError
from samforge.core.images import ImageSource


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EncodedImage:
    """What the vision part makes of one image: prompt it as often as you like."""

    features: Mapping[str, Any]
    """Every output of the part: ``fpn_0``, ``fpn_1``, ``fpn_2``, each (1, D, h, w), finest first,
    and ``class_token`` (1, 1, D) where Meta's code is the reference. Arrays of the host, or tensors
    of the device."""
    size_hw: tuple[int, int]
    """Height and width of the image that was read, pixels."""
    image_size: int
    """Side of the square the image was squashed to, pixels."""
    device: str = "cpu"
    """Where the features lie: ``cpu``, ``cuda:0``."""
    digest: str = ""
    """Of the bundle whose vision part made them, where it is one."""


Prompted: TypeAlias = ImageSource | EncodedImage


def require_own(image: EncodedImage, *, image_size: int, device: str, digest: str) -> None:
    """Make sure that an image was encoded by the parts that are to read it.

    Raises:
        ShapeError: By others: for another size, on another device, or of another bundle.
    """
    if image.image_size != image_size:
        raise ShapeError(
            f"This segmenter works at an image size of {image_size}, the image was encoded at "
            f"{image.image_size}. Encode it with this segmenter."
        )
    if image.device != device:
        raise ShapeError(
            f"This segmenter keeps features on {device}, the image was encoded on {image.device}. "
            "Encode it with this segmenter."
        )
    if image.digest != digest:
        raise ShapeError(
            "The image was encoded by another bundle, whose features mean something else. Encode "
            "it with this segmenter."
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TakenImage:
    """An image that an executor has taken over: the caller may fill its memory again."""

    rgb: Any
    """(H, W, 3), uint8, where the executor wants it."""
    size_hw: tuple[int, int]
    """Height and width, pixels."""


Ready: TypeAlias = EncodedImage | TakenImage
