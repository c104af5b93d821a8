"""Drawn shapes in motion with known masks: a video that needs no file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from samforge.core.errors import SettingError
from samforge.models.tiny.scenes import (
    _REACH,
    COLOURS,
    SHAPES,
    SIZE,
    Scene,
    _boxes,
    _draw,
    _ground,
    _photographed,
    _Placed,
    _placed_at,
    _tint,
)

_CLIPS = 4  # the first half of the random seed, next to the codes of SPLITS
_RADIUS = (18.0, 26.0)
_SPEED = (35.0, 80.0)  # pixels a second
_SPIN = (-1.6, 1.6)  # radians a second
_MOST = 6  # more would not find room
_TRIES = 1000

Floats = npt.NDArray[np.float32]


@dataclass(kw_only=True, slots=True)
class _Moving:
    """One shape under way; all lengths in pixels of a picture of ``SIZE``."""

    colour: int
    shape: int
    radius: float
    x: float
    y: float
    across: float
    """Speed to the right, pixels a second."""
    down: float
    """Speed downwards, pixels a second."""
    angle: float
    spin: float
    """Radians a second."""


def draw_clip(
    seed: int, *, frames: int = 60, shapes: int = 5, size: int = SIZE, frame_rate: float = 30.0
) -> Iterator[Scene]:
    """Draw a short clip of shapes that drift, turn, and bounce off each other and the edge.

    The first two shapes are alike, the third shares its colour with them and the fourth its shape,
    so that every kind of phrase means something. No shape hides another by more than a sliver.

    Args:
        seed: Number of the clip, from 0. No clip has the shapes of a scene of ``draw_scene``.
        frames: How many pictures.
        shapes: Shapes in each of them, 1 to 6.
        size: Height and width in pixels; shapes and speeds scale with it.
        frame_rate: Pictures a second: at a higher rate shapes move less from one to the next.

    Yields:
        Each picture with its masks; a shape keeps its number through the clip.

    Raises:
        SettingError: A number is outside what is allowed.
    """
    if seed < 0 or frames < 1 or not 1 <= shapes <= _MOST or size < 56 or not frame_rate > 0:
        raise SettingError(
            f"A clip has a seed from 0, at least 1 frame, 1 to {_MOST} shapes, a size of at least "
            f"56 and a frame rate above 0, got {seed}, {frames}, {shapes}, {size}, {frame_rate:g}."
        )
    rng = np.random.default_rng([_CLIPS, seed])
    moving = _started(rng, shapes)
    ground = _ground(rng, size)
    return (
        _picture(moving, ground, (seed, number), last_step=1 / frame_rate)
        for number in range(frames)
    )


def _picture(
    moving: list[_Moving],
    ground: Floats,
    key: tuple[int, int],
    *,
    last_step: float,
) -> Scene:
    seed, number = key
    if number:
        _step(moving, last_step)
    size = len(ground)
    canvas = ground.copy()
    instances = np.zeros((size, size), np.uint8)
    placed: list[_Placed] = []
    tints = np.random.default_rng([_CLIPS, seed, 0])  # the same in every picture
    scale = size / SIZE
    for one in moving:
        pose = (one.x * scale, one.y * scale, one.radius * scale, one.angle)
        shape = _placed_at(one.colour, one.shape, pose, size)
        _draw(shape, placed, instances, canvas, _tint(tints, one.colour))
    noise = np.random.default_rng([_CLIPS, seed, number + 1])
    return Scene(
        image=_photographed(noise, canvas),
        instances=instances,
        shapes=tuple(SHAPES[one.shape] for one in placed),
        colours=tuple(COLOURS[one.colour] for one in placed),
        boxes_xyxy=_boxes(instances, placed),
        visible_shares=np.array([one.visible / one.area for one in placed], np.float32),
    )


def _started(rng: np.random.Generator, count: int) -> list[_Moving]:
    """Shapes at places of their own, each on its way."""
    colours = rng.permutation(len(COLOURS)).tolist()
    kinds = rng.permutation(len(SHAPES)).tolist()
    alike = [(colours[0], kinds[0]), (colours[0], kinds[0])]
    others = [(colours[0], kinds[1]), (colours[1], kinds[0])]
    rest = [(colours[i], kinds[i]) for i in range(2, _MOST)]
    moving: list[_Moving] = []
    for colour, shape in [*alike, *others, *rest][:count]:
        radius, speed = float(rng.uniform(*_RADIUS)), float(rng.uniform(*_SPEED))
        heading = float(rng.uniform(0, 2 * math.pi))
        x, y = _free_place(rng, radius, moving)
        moving.append(
            _Moving(
                colour=colour,
                shape=shape,
                radius=radius,
                x=x,
                y=y,
                across=speed * math.cos(heading),
                down=speed * math.sin(heading),
                angle=float(rng.uniform(0, 2 * math.pi)),
                spin=float(rng.uniform(*_SPIN)),
            )
        )
    return moving


def _free_place(
    rng: np.random.Generator, radius: float, moving: list[_Moving]
) -> tuple[float, float]:
    margin = radius * _REACH
    for _ in range(_TRIES):
        x, y = (float(v) for v in rng.uniform(margin, SIZE - margin, 2))
        if all(math.hypot(x - o.x, y - o.y) > (radius + o.radius) * _REACH for o in moving):
            return x, y
    raise AssertionError("six shapes of the largest radius leave room for each other")


def _step(moving: list[_Moving], seconds: float) -> None:
    """Move everything on, as discs without friction."""
    for one in moving:
        one.x += one.across * seconds
        one.y += one.down * seconds
        one.angle += one.spin * seconds
        margin = one.radius * _REACH
        # Towards the inside, whatever the speed was: a shape that a push sent past the edge
        # would otherwise turn round in every picture.
        if not margin <= one.x <= SIZE - margin:
            one.across = math.copysign(one.across, SIZE / 2 - one.x)
            one.x = min(max(one.x, margin), SIZE - margin)
        if not margin <= one.y <= SIZE - margin:
            one.down = math.copysign(one.down, SIZE / 2 - one.y)
            one.y = min(max(one.y, margin), SIZE - margin)
    for i, one in enumerate(moving):
        for other in moving[:i]:
            _bounce(one, other)


def _bounce(one: _Moving, other: _Moving) -> None:
    """Exchange momentum along the line between two discs that touch and approach."""
    across, down = other.x - one.x, other.y - one.y
    distance = math.hypot(across, down)
    if not 0 < distance < (one.radius + other.radius) * _REACH:
        return
    across, down = across / distance, down / distance
    closing = (one.across - other.across) * across + (one.down - other.down) * down
    if closing <= 0:
        return
    mass, other_mass = one.radius**2, other.radius**2
    push = 2 * closing / (mass + other_mass)
    one.across -= push * other_mass * across
    one.down -= push * other_mass * down
    other.across += push * mass * across
    other.down += push * mass * down
