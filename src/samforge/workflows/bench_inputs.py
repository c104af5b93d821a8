"""What bundles are timed on: pictures and phrases that their models can read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from samforge.core.errors import SettingError
from samforge.core.images import RgbImage
from samforge.models import tiny

_NOISE_HW = (720, 1280)
# For models that read any word.
_NOUNS = ("person", "car", "dog", "tree", "chair", "bottle", "bicycle", "house")


def images_for(count: int, image: RgbImage | None, *, taught: bool) -> list[RgbImage]:
    """The batch: the given image, drawn scenes, or noise.

    Args:
        count: How many.
        image: (H, W, 3), or None for made-up ones.
        taught: Whether the model was taught drawn scenes.
    """
    if image is not None:
        return [image] * count
    if taught:
        return [tiny.draw_scene(number, split="demo").image for number in range(count)]
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*_NOISE_HW, 3), np.uint8) for _ in range(count)]


def input_words(taught: Sequence[bool], image: Path | None) -> str:
    """Say what ``images_for`` gives.

    Args:
        taught: Whether each model was taught drawn scenes.
        image: File of the given image.
    """
    if image is not None:
        return image.name
    height, width = _NOISE_HW
    scenes = f"drawn scenes of {tiny.SIZE} x {tiny.SIZE}"
    noise = f"noise of {width} x {height}"
    if len(set(taught)) == 2:
        return f"{scenes} (tiny), {noise} (others)"
    return scenes if any(taught) else noise


def phrases_for(count: int, *, taught: bool) -> list[str]:
    """Distinct phrases that the model can read.

    Raises:
        SettingError: A model that reads the words of drawn scenes alone knows fewer phrases.
    """
    known = list(tiny.vocabulary()) if taught else list(_NOUNS)
    if taught and count > len(known):
        raise SettingError(
            f"The tiny model knows {len(known)} phrases, {count} were asked for. Give fewer."
        )
    return [*known, *(f"object {number}" for number in range(len(known), count))][:count]
