"""What parts are compared on: every size of their dynamic axes, and pictures of every kind.

A graph that answers the fourth phrase like the first, or makes NaN of a black picture, agrees with
its part on two phrases and on noise. So the sizes sweep each axis, and pictures are no noise alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import cycle
from math import prod

import numpy as np
import torch
from torch import Tensor

from samforge.core.axes import AXES, axes_of
from samforge.core.images import ImageSpec, RgbImage
from samforge.core.recipe import Recipe
from samforge.core.session import PartSpec
from samforge.core.targets import target_from_name
from samforge.models.family import Model
from samforge.runtime import image_bchw_from_rgb

MOST_PAIRS = 8
"""Images times phrases in one call: every step runs all of them, and builds must stay quick."""
PICTURES = ("noise", "black", "white", "one colour", "saturated", "photograph")
"""Kinds of pictures that take turns; ``noise`` is normal, as no picture is."""


def sweep_of(recipe: Recipe, spec: PartSpec) -> tuple[dict[str, int], ...]:
    """Sizes of a part's dynamic axes at which steps are compared, small images.

    Each axis takes every size that its target allows, and products of images and phrases stay
    small: where one axis is long the other is short.

    Args:
        recipe: Engines have profiles with a largest size.
        spec: Sizes that the part cannot tell apart are left out.

    Raises:
        SettingError: The part has an axis that nobody knows.
    """
    own = axes_of(spec)
    axes = [axis for axis in AXES.values() if axis.multiplies or axis in own]
    largest = {axis.name: axis.largest for axis in axes}
    if target_from_name(recipe.target).engine:
        largest = recipe.engine.largest()
    values = {axis.name: axis.sizes(largest[axis.name]) for axis in axes}
    turns = {
        axis.name: cycle(values[axis.name][1:] + values[axis.name][:1])
        for axis in axes
        if not axis.multiplies
    }
    sizes = [_one_of_each(values)]
    for index in range(max(map(len, values.values()))):
        long = {name: those for name, those in values.items() if name not in turns}
        sizes.append(_products(long, index) | {name: next(turn) for name, turn in turns.items()})
    return told_apart(_with_all(sizes, values), spec)


def _one_of_each(values: Mapping[str, list[int]]) -> dict[str, int]:
    return dict.fromkeys(values, 1)


def _products(values: Mapping[str, list[int]], index: int) -> dict[str, int]:
    """Sizes of axes that multiply: the first takes its turn, and the others what room it leaves."""
    sizes: dict[str, int] = {}
    for name, those in values.items():
        if not sizes:
            sizes[name] = those[min(index, len(those) - 1)]
            continue
        fitting = (size for size in those if prod(sizes.values()) * size <= MOST_PAIRS)
        sizes[name] = max(fitting, default=1)
    return sizes


def _with_all(
    sizes: list[dict[str, int]], values: Mapping[str, list[int]]
) -> tuple[dict[str, int], ...]:
    """Add what no size has yet, on one image with one phrase each."""
    for axis, wanted in values.items():
        for size in wanted:
            if all(one[axis] != size for one in sizes):
                sizes.append(_one_of_each(values) | {axis: size})
    return tuple(sizes)


def told_apart(sizes: Iterable[Mapping[str, int]], spec: PartSpec) -> tuple[dict[str, int], ...]:
    """The sizes that differ in an axis of the part, on these axes only.

    Raises:
        SettingError: The part has an axis that nobody knows.
    """
    names = {axis.name for axis in axes_of(spec)}
    cut = [{axis: size for axis, size in one.items() if axis in names} for one in sizes]
    return tuple(dict(items) for items in dict.fromkeys(tuple(one.items()) for one in cut))


def sample_inputs(
    model: Model, part: str, sizes: Mapping[str, int], seed: int
) -> dict[str, Tensor]:
    """Inputs of a part: pictures of every kind, and random numbers of the right kind for the rest.

    Args:
        model: Knows the part.
        part: Its name.
        sizes: Of its dynamic axes.
        seed: Which picture comes first, and the random numbers.
    """
    inputs = model.inputs(part, sizes, seed)
    if "images" in inputs:
        images = inputs["images"]
        rng = np.random.default_rng(seed)
        for index in range(images.shape[0]):
            kind = PICTURES[(seed + index) % len(PICTURES)]
            if kind != "noise":
                picture = image_bchw_from_rgb(_DRAWN[kind](rng, model.image), model.image)
                images[index] = torch.from_numpy(picture[0])
    return inputs


def _flat(value: int) -> Callable[[np.random.Generator, ImageSpec], RgbImage]:
    return lambda _, image: np.full((image.size, image.size, 3), value, np.uint8)


def _one_colour(rng: np.random.Generator, image: ImageSpec) -> RgbImage:
    colour = rng.integers(0, 256, 3, np.uint8)
    return np.ascontiguousarray(np.broadcast_to(colour, (image.size, image.size, 3)))


def _saturated(rng: np.random.Generator, image: ImageSpec) -> RgbImage:
    return rng.integers(0, 2, (image.size, image.size, 3), np.uint8) * np.uint8(255)


def _photograph(rng: np.random.Generator, image: ImageSpec) -> RgbImage:
    """Noise whose amplitude falls with frequency, as that of photographs does.

    Source: Field, "Relations between the statistics of natural images", JOSA A 4 (1987): amplitude
    is inversely proportional to frequency.
    """
    size = image.size
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    spectrum = np.fft.rfft2(rng.standard_normal((3, size, size))) / np.maximum(frequency, 1 / size)
    picture = np.fft.irfft2(spectrum, s=(size, size)).transpose(1, 2, 0)
    low, high = picture.min(), picture.max()
    return np.asarray(255 * (picture - low) / (high - low), np.uint8)


_DRAWN = {
    "black": _flat(0),
    "white": _flat(255),
    "one colour": _one_colour,
    "saturated": _saturated,
    "photograph": _photograph,
}
