"""Drawn scenes with known answers: what the tiny model learns from and is measured on.

A scene is one picture of coloured shapes on a textured ground. It is a function of its split and
seed alone, so a held-out set needs no files: the thousand scenes of a report are ``range(1000)``.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from samforge.core.errors import SettingError

SHAPES = ("circle", "square", "triangle", "ring", "cross", "star")
"""Every shape a scene can hold, by the word of its prompt."""
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
"""Every colour a shape can have, by the word of its prompt."""
ANY = "object"
"""The word that matches every shape."""
SPLITS = {"train": 1, "held-out": 2, "demo": 3}
"""Name of each split and its code, the first half of a scene's random seed."""
SIZE = 224
"""Side of a scene in pixels that all lengths below refer to."""
MOST_INSTANCES = 8
"""No scene holds more shapes."""

_RGB = np.array(
    [
        (0.85, 0.10, 0.10),
        (0.10, 0.65, 0.15),
        (0.10, 0.20, 0.85),
        (0.90, 0.85, 0.10),
        (0.55, 0.10, 0.70),
        (0.95, 0.50, 0.05),
        (0.95, 0.95, 0.95),
        (0.05, 0.05, 0.05),
    ],
    dtype=np.float32,
)
_JITTER = 0.07
_NOISE = 0.03
_RADIUS = (17.0, 50.0)
# A shape reaches at most this many radii from its centre: the corner of the square.
_REACH = 1.07
# Floors below which a shape could not be told apart by a person either.
_VISIBLE_SHARE = 0.4
_VISIBLE_PIXELS = 120
_TRIES = 8
# Areas at radius 1, in closed form; they must follow _inside.
_AREAS = {
    "circle": math.pi,
    "square": 1.5**2,
    "triangle": 0.75 * math.sqrt(3),
    "ring": math.pi * (1 - 0.55**2),
    "cross": 2 * 0.6 * 2 - 0.6**2,
    "star": 5 * 0.5 * math.sin(0.2 * math.pi),
}
# Direction of the normal of the star's edge, from its tip.
_STAR_NORMAL = math.atan2(1 - 0.5 * math.cos(0.2 * math.pi), 0.5 * math.sin(0.2 * math.pi))

Mask = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scene:
    """One picture of drawn shapes and what is where in it."""

    image: npt.NDArray[np.uint8]
    """(H, W, 3), RGB."""
    instances: npt.NDArray[np.uint8]
    """(H, W), 0 for the ground and i + 1 where instance i is visible."""
    shapes: tuple[str, ...]
    """Shape of each instance, back to front."""
    colours: tuple[str, ...]
    """Colour of each instance."""
    boxes_xyxy: npt.NDArray[np.float32]
    """(N, 4), pixels, around the visible part; right and bottom exclusive."""
    visible_shares: npt.NDArray[np.float32]
    """(N,), visible part of each instance's area, 0 to 1."""

    @property
    def masks(self) -> Mask:
        """(N, H, W), the visible part of each instance."""
        numbers = np.arange(1, len(self.shapes) + 1, dtype=np.uint8)
        mask: Mask = self.instances[None] == numbers[:, None, None]
        return mask

    @property
    def concepts(self) -> tuple[tuple[str, str], ...]:
        """Every pair of colour and shape in the scene, once each, back to front."""
        return tuple(dict.fromkeys(zip(self.colours, self.shapes, strict=True)))

    def matching(self, phrase: str) -> Indices:
        """Instances that a phrase names: ``red circle``, ``star``, ``blue object``, ``object``.

        Returns:
            (M,) ascending; empty when nothing matches or a word is unknown.
        """
        words = phrase.lower().split()
        if not words or len(words) > 2 or words[-1] not in (*SHAPES, ANY):
            return np.zeros(0, np.int64)
        colour = words[0] if len(words) == 2 else None
        hits = [
            index
            for index, (own_colour, own_shape) in enumerate(
                zip(self.colours, self.shapes, strict=True)
            )
            if colour in (None, own_colour) and words[-1] in (ANY, own_shape)
        ]
        return np.array(hits, np.int64)

    def alike(self, index: int) -> Indices:
        """(M,) instances of the same shape and colour as ``index``, itself included."""
        return self.matching(f"{self.colours[index]} {self.shapes[index]}")

    def phrases(self) -> tuple[str, ...]:
        """Every phrase of the vocabulary that matches something here."""
        return tuple(phrase for phrase in vocabulary() if len(self.matching(phrase)))

    def absent_phrases(self) -> tuple[str, ...]:
        """Every phrase of the vocabulary that matches nothing here."""
        return tuple(phrase for phrase in vocabulary() if not len(self.matching(phrase)))


@lru_cache(maxsize=1)
def vocabulary() -> tuple[str, ...]:
    """The 63 phrases the tiny model is taught: everything, shapes, colours, and their pairs."""
    return (
        ANY,
        *SHAPES,
        *(f"{colour} {ANY}" for colour in COLOURS),
        *(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES),
    )


def knows_scenes(words: Collection[str]) -> bool:
    """Whether a model was taught drawn scenes: by the words it reads, whatever it is called.

    Args:
        words: Those that its tokenizer knows; none where it builds any word from pieces.
    """
    return {word for phrase in vocabulary() for word in phrase.split()} <= set(words)


def draw_scene(seed: int, *, split: str = "held-out", size: int = SIZE) -> Scene:
    """Draw one scene.

    Concepts are few and instances many, so that a shape usually has others alike and pointing at
    one of them means something. Every shape stays recognizable: a placement that would hide too
    much of an earlier one, or overlap one of the same colour, is drawn again or left out.

    Args:
        seed: Number of the scene within its split, from 0.
        split: ``train``, ``held-out`` or ``demo``; no scene is in two of them.
        size: Height and width in pixels; shapes scale with it.

    Raises:
        SettingError: The split is unknown, the seed negative or the size below 56.
    """
    if split not in SPLITS:
        raise SettingError(f"split is one of {', '.join(SPLITS)}, got {split!r}.")
    if seed < 0 or size < 56:
        raise SettingError(f"seed is at least 0 and size at least 56, got {seed} and {size}.")
    rng = np.random.default_rng([SPLITS[split], seed])
    canvas = _ground(rng, size)
    instances = np.zeros((size, size), np.uint8)
    placed: list[_Placed] = []
    for colour, shape in _cast(rng):
        for _ in range(_TRIES):
            new = _place(rng, colour, shape, size)
            if _fits(new, placed, instances):
                _draw(new, placed, instances, canvas, _tint(rng, colour))
                break
    return Scene(
        image=_photographed(rng, canvas),
        instances=instances,
        shapes=tuple(SHAPES[one.shape] for one in placed),
        colours=tuple(COLOURS[one.colour] for one in placed),
        boxes_xyxy=_boxes(instances, placed),
        visible_shares=np.array([one.visible / one.area for one in placed], np.float32),
    )


@dataclass(kw_only=True, slots=True)
class _Placed:
    """One shape on its way into the picture."""

    colour: int
    shape: int
    window: tuple[slice, slice]
    """Rows and columns it can touch."""
    mask: Mask
    """(h, w) of the window."""
    area: float
    """Pixels it would cover if nothing hid it, the picture's edge included."""
    least: float
    """Fewest visible pixels at which it is still recognizable."""
    visible: int
    """Pixels visible now."""


def _cast(rng: np.random.Generator) -> list[tuple[int, int]]:
    """(colour, shape) of each instance to draw, 1 to 8 of 1 to 4 concepts."""
    concepts: list[tuple[int, int]] = []
    for _ in range(int(rng.integers(1, 5))):
        colour, shape = int(rng.integers(len(COLOURS))), int(rng.integers(len(SHAPES)))
        if concepts and rng.random() < 0.5:
            # Near misses teach most: half of the concepts share a word with the one before.
            before = concepts[-1]
            colour, shape = (before[0], shape) if rng.random() < 0.5 else (colour, before[1])
        concepts.append((colour, shape))
    count = int(rng.integers(1, MOST_INSTANCES + 1))
    extra = rng.integers(len(concepts), size=max(count - len(concepts), 0))
    cast = (concepts + [concepts[i] for i in extra])[:count]
    return [cast[i] for i in rng.permutation(len(cast))]


def _place(rng: np.random.Generator, colour: int, shape: int, size: int) -> _Placed:
    """A shape at a random position, size and angle, not drawn yet."""
    radius = float(rng.uniform(*_RADIUS)) * (size / SIZE)
    # Centres stay far enough inside that the edge alone never hides half of a shape.
    margin = 0.6 * radius
    x, y = (float(v) for v in rng.uniform(margin, size - margin, 2))
    angle = float(rng.uniform(0.0, 2 * math.pi))
    return _placed_at(colour, shape, (x, y, radius, angle), size)


def _placed_at(
    colour: int, shape: int, pose: tuple[float, float, float, float], size: int
) -> _Placed:
    """A shape with a given centre x, y, radius (pixels) and angle (radians), not drawn yet."""
    x, y, radius, angle = pose
    reach = radius * _REACH
    left, right = max(0, math.floor(x - reach)), min(size, math.ceil(x + reach))
    top, bottom = max(0, math.floor(y - reach)), min(size, math.ceil(y + reach))
    across = (np.arange(left, right, dtype=np.float32) + np.float32(0.5 - x)) / np.float32(radius)
    down = (np.arange(top, bottom, dtype=np.float32) + np.float32(0.5 - y)) / np.float32(radius)
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    u = cos * across[None] + sin * down[:, None]
    v = cos * down[:, None] - sin * across[None]
    mask = _inside(SHAPES[shape], u, v)
    area = _AREAS[SHAPES[shape]] * radius**2
    return _Placed(
        colour=colour,
        shape=shape,
        window=(slice(top, bottom), slice(left, right)),
        mask=mask,
        area=area,
        least=max(_VISIBLE_SHARE * area, _VISIBLE_PIXELS * (size / SIZE) ** 2),
        visible=int(np.count_nonzero(mask)),
    )


def _inside(shape: str, u: npt.NDArray[np.float32], v: npt.NDArray[np.float32]) -> Mask:
    """Whether points of the shape's own frame, in radii, lie in it."""
    if shape == "circle":
        mask = u * u + v * v < 1.0
    elif shape == "square":
        mask = np.maximum(np.abs(u), np.abs(v)) < 0.75
    elif shape == "triangle":
        mask = (v > -0.5) & (np.abs(u) * 0.8660254 + v * 0.5 < 0.5)
    elif shape == "ring":
        square = u * u + v * v
        mask = (square < 1.0) & (square > 0.55**2)
    elif shape == "cross":
        u, v = np.abs(u), np.abs(v)
        mask = (np.minimum(u, v) < 0.3) & (np.maximum(u, v) < 1.0)
    else:
        # Fold the plane into one of ten mirrored wedges, whose outer edge is one straight line
        # from the tip at radius 1 to the notch at radius 0.5.
        wedge = np.abs(np.mod(np.arctan2(v, u), 0.4 * math.pi) - 0.2 * math.pi)
        radius = np.sqrt(u * u + v * v)
        mask = radius * np.cos(0.2 * math.pi - wedge - _STAR_NORMAL) < math.cos(_STAR_NORMAL)
    result: Mask = mask
    return result


def _fits(new: _Placed, placed: list[_Placed], instances: npt.NDArray[np.uint8]) -> bool:
    """Whether every shape stays recognizable, the new one included."""
    if new.visible < new.least:
        return False
    hidden = _hidden(new, placed, instances)
    return all(
        not lost or (one.colour != new.colour and one.visible - lost >= one.least)
        for one, lost in zip(placed, hidden, strict=True)
    )


def _hidden(new: _Placed, placed: list[_Placed], instances: npt.NDArray[np.uint8]) -> list[int]:
    """Pixels of each earlier shape that the new one would cover."""
    under = instances[new.window][new.mask]
    counts: list[int] = np.bincount(under, minlength=len(placed) + 1)[1:].tolist()
    return counts


def _draw(
    new: _Placed,
    placed: list[_Placed],
    instances: npt.NDArray[np.uint8],
    canvas: npt.NDArray[np.float32],
    tint: npt.NDArray[np.float32],
) -> None:
    """Paint a shape over the earlier ones in an RGB of its own."""
    for one, lost in zip(placed, _hidden(new, placed, instances), strict=True):
        one.visible -= lost
    placed.append(new)
    instances[new.window][new.mask] = len(placed)
    canvas[new.window][new.mask] = tint


def _tint(rng: np.random.Generator, colour: int) -> npt.NDArray[np.float32]:
    """(3,) the colour as this one shape has it."""
    tint: npt.NDArray[np.float32] = _RGB[colour] + rng.uniform(-_JITTER, _JITTER, 3).astype(
        np.float32
    )
    return tint


def _boxes(instances: npt.NDArray[np.uint8], placed: list[_Placed]) -> npt.NDArray[np.float32]:
    """(N, 4) around the visible part of each instance, right and bottom exclusive."""
    boxes = np.zeros((len(placed), 4), np.float32)
    for index, one in enumerate(placed):
        rows, columns = one.window
        mask = instances[one.window] == index + 1
        across, down = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
        boxes[index] = (
            columns.start + across[0],
            rows.start + down[0],
            columns.start + across[-1] + 1,
            rows.start + down[-1] + 1,
        )
    return boxes


@lru_cache(maxsize=16)
def _stretch(cells: int, size: int) -> npt.NDArray[np.float32]:
    """(size, cells) weights that stretch a row of random values smoothly over the picture."""
    position = (np.arange(size) + 0.5) / size * (cells - 1)
    left = np.minimum(position.astype(int), cells - 2)
    share = position - left
    share = share * share * (3 - 2 * share)  # smoothstep: no creases at the grid lines
    weights = np.zeros((size, cells), np.float32)
    weights[np.arange(size), left] = 1 - share
    weights[np.arange(size), left + 1] = share
    return weights


def _ground(rng: np.random.Generator, size: int) -> npt.NDArray[np.float32]:
    """(H, W, 3) clouds and stripes in dull middle tones, in which no colour of ours can hide."""
    clouds = rng.uniform(-0.07, 0.07, (5, 5, 3)) + rng.uniform(-0.08, 0.08, (5, 5, 1))
    clouds += rng.uniform(0.42, 0.6) + rng.uniform(-0.05, 0.05, 3)
    fine = rng.uniform(-0.05, 0.05, (29, 29))
    a, b = rng.uniform(-0.4, 0.4, 2)
    depth = float(rng.choice((0.0, 0.05)))
    coarse_weights, fine_weights = _stretch(5, size), _stretch(29, size)
    # Everything is a sum of products of a column and a row, stripes sin(ax + by) included, so
    # that the picture is one matrix product: no sine and no broadcast of every pixel.
    steps = np.arange(size, dtype=np.float32) * np.float32(SIZE / size)
    columns = np.concatenate(
        [coarse_weights, fine_weights, np.sin(b * steps)[:, None], np.cos(b * steps)[:, None]], 1
    )  # [H, 36]
    grey = np.concatenate(
        [fine @ fine_weights.T, depth * np.cos(a * steps)[None], depth * np.sin(a * steps)[None]]
    )  # [31, W]
    tinted = np.einsum("wj,ijc->iwc", coarse_weights, clouds).reshape(5, size * 3)
    rows = np.concatenate([tinted, np.repeat(grey, 3, axis=1)])  # [36, W * 3]
    ground: npt.NDArray[np.float32] = columns.astype(np.float32) @ rows.astype(np.float32)
    return ground.reshape(size, size, 3)


@lru_cache(maxsize=1)
def _noise_levels() -> npt.NDArray[np.float32]:
    """(256,) normal quantiles in grey levels: one random byte becomes one noise value."""
    bell = NormalDist(0.0, _NOISE * 255)
    return np.array([bell.inv_cdf((i + 0.5) / 256) for i in range(256)], np.float32)


def _photographed(
    rng: np.random.Generator, canvas: npt.NDArray[np.float32]
) -> npt.NDArray[np.uint8]:
    """(H, W, 3) bytes with a camera's noise; ``canvas`` is used up."""
    noise = np.take(_noise_levels(), rng.integers(0, 256, canvas.shape, np.uint8))
    canvas *= np.float32(255)
    canvas += noise
    image: npt.NDArray[np.uint8] = canvas.clip(0, 255).astype(np.uint8)
    return image
