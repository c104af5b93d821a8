"""Clips that only memory solves: shapes hide each other, leave, come back, and look alike.

Shapes pass through each other where those of :mod:`samforge.models.tiny.moving` bounce, so that
whoever follows them needs to know them again. Every place is a closed formula of the frame's
number: frames can be drawn in any order and at any distance.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from samforge.core.errors import SettingError
from samforge.models.tiny.scenes import (
    _JITTER,
    _REACH,
    _RGB,
    COLOURS,
    SHAPES,
    SIZE,
    SPLITS,
    Scene,
    _draw,
    _ground,
    _photographed,
    _Placed,
    _placed_at,
)

FRAMES = 32
"""Pictures of a clip, unless asked otherwise."""
LEAST_PIXELS = 24
"""Fewer visible pixels (of a picture of 224) are no object: two cells of the tracker's masks."""
MOST = 6
"""Shapes in a clip."""

_CROSSINGS = 5  # the first part of the random seed, next to SPLITS and to moving's clips
_RADIUS = (18.0, 34.0)
_COVER_RADIUS = (40.0, 50.0)
_COVERS = (SHAPES.index("circle"), SHAPES.index("square"))  # nothing shows through them
_SPEED = (3.0, 8.0)  # pixels a frame
_SPIN = (-0.06, 0.06)  # radians a frame
_OUTSIDE = (20.0, 90.0)  # how far beyond the edge a visitor turns back
_VISITORS = 0.75
_COVERED = 0.6
_AIMED = 0.6  # of the movers start towards what covers, where there is such a shape
_ALIKE = 0.6

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Plan:
    """What moves how in one clip, back to front; lengths in pixels of a picture of ``SIZE``."""

    colours: npt.NDArray[np.int64]
    """(S,), index into ``COLOURS``."""
    shapes: npt.NDArray[np.int64]
    """(S,), index into ``SHAPES``."""
    tints: npt.NDArray[np.float32]
    """(S, 3), RGB, 0 to 1."""
    radius: Floats
    """(S,)."""
    start: Floats
    """(S, 2), place on frame 0 before it is folded, x and y."""
    speed: Floats
    """(S, 2), pixels a frame."""
    low: Floats
    """(S, 2), where a shape turns back; below 0 for one that leaves the picture."""
    high: Floats
    """(S, 2)."""
    angle: Floats
    """(S,), radians on frame 0."""
    spin: Floats
    """(S,), radians a frame."""

    def poses(self, frames: Floats) -> Floats:
        """Where everything is.

        Args:
            frames: (T,), numbers of frames, from 0, in any order.

        Returns:
            (T, S, 4), centre x and y, radius, angle.
        """
        time = frames[:, None]
        place = _folded(self.start + self.speed * time[..., None], self.low, self.high)
        radius = np.broadcast_to(self.radius, place.shape[:2])
        return np.concatenate(
            [place, radius[..., None], (self.angle + self.spin * time)[..., None]], -1
        )


def plan_crossing(seed: int, *, split: str = "held-out") -> Plan:
    """Decide what a clip shows.

    Three to six shapes: often two alike, near misses, shapes that leave the picture and come back,
    and one that stands still in front and hides what passes behind it.

    Raises:
        SettingError: The split is unknown or the seed negative.
    """
    if split not in SPLITS or seed < 0:
        raise SettingError(
            f"split is one of {', '.join(SPLITS)} and seed at least 0, got {split!r} and {seed}."
        )
    rng = np.random.default_rng([_CROSSINGS, SPLITS[split], seed])
    covered = bool(rng.random() < _COVERED)
    movers = int(rng.integers(3, MOST + 1 - covered))
    colours, shapes = _cast(rng, movers)
    radius = rng.uniform(*_RADIUS, movers)
    margin = (radius * _REACH)[:, None]
    low, high = margin * [1.0, 1.0], SIZE - margin * [1.0, 1.0]
    cover = float(rng.uniform(*_COVER_RADIUS))
    place = rng.uniform(0.8 * cover, SIZE - 0.8 * cover, (1, 2))
    start = rng.uniform(low, high)
    heading = rng.uniform(0, 2 * np.pi, movers)
    if covered:
        away = place - start
        aimed = rng.random(movers) < _AIMED
        heading = np.where(aimed, np.arctan2(away[:, 1], away[:, 0]), heading)
    direction = np.stack([np.cos(heading), np.sin(heading)], 1)
    speed = rng.uniform(*_SPEED, movers)[:, None] * direction
    _let_out(rng, speed, low, high)
    if covered:
        colours = np.append(colours, rng.integers(len(COLOURS)))
        shapes = np.append(shapes, rng.choice(_COVERS))
        radius = np.append(radius, cover)
        start, speed = np.concatenate([start, place]), np.concatenate([speed, np.zeros((1, 2))])
        low, high = np.concatenate([low, place - 1]), np.concatenate([high, place + 1])
    count = len(radius)
    # What covers is in front; the order of the others is any.
    order = np.append(rng.permutation(movers), np.arange(movers, count))
    tints = _RGB[colours] + rng.uniform(-_JITTER, _JITTER, (count, 3)).astype(np.float32)
    return Plan(
        colours=colours[order],
        shapes=shapes[order],
        tints=tints[order],
        radius=radius[order],
        start=start[order],
        speed=speed[order],
        low=low[order],
        high=high[order],
        angle=rng.uniform(0, 2 * np.pi, count),
        spin=rng.uniform(*_SPIN, count),
    )


def draw_crossing(
    seed: int, *, frames: int = FRAMES, split: str = "held-out", size: int = SIZE
) -> Iterator[Scene]:
    """Draw a clip in which shapes hide each other, leave and come back.

    A shape of which fewer than :data:`LEAST_PIXELS` are visible (in proportion at other sizes) is
    taken for hidden: it has no mask, a box of zeros, and the visible share 0.

    Args:
        seed: Number of the clip within its split, from 0.
        frames: How many pictures.
        split: ``train``, ``held-out`` or ``demo``; no clip is in two of them.
        size: Height and width in pixels.

    Yields:
        Each picture with its masks; a shape keeps its number through the clip.

    Raises:
        SettingError: The split is unknown, the seed negative, no frames or the size below 56.
    """
    if frames < 1 or size < 56:
        raise SettingError(
            f"A clip has at least 1 frame and a size of at least 56, got {frames} and {size}."
        )
    plan = plan_crossing(seed, split=split)
    key = [_CROSSINGS, SPLITS[split], seed]
    ground = _ground(np.random.default_rng([*key, 0]), size)
    poses = plan.poses(np.arange(frames, dtype=np.float64))
    return (
        _picture(plan, poses[frame], ground, np.random.default_rng([*key, 1 + frame]))
        for frame in range(frames)
    )


def _cast(
    rng: np.random.Generator, count: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Colours and shapes of ``count`` movers; the first two are often alike."""
    colours = rng.integers(len(COLOURS), size=count)
    shapes = rng.integers(len(SHAPES), size=count)
    if rng.random() < _ALIKE:
        colours[1], shapes[1] = colours[0], shapes[0]
    for index in range(2, count):
        # Near misses teach most: half of the others share a word with the first.
        if rng.random() < 0.5:
            shared = colours if rng.random() < 0.5 else shapes
            shared[index] = shared[0]
    return colours, shapes


def _let_out(rng: np.random.Generator, speed: Floats, low: Floats, high: Floats) -> None:
    """Move the place where some shapes turn back beyond the edge that they move towards, or from.

    The first shape stays, so that a clip is never empty.
    """
    for index in range(1, len(speed)):
        reach = low[index, 0]
        beyond = reach + rng.uniform(*_OUTSIDE)
        axis = int(np.abs(speed[index]).argmax())
        ahead = rng.random() < 0.8
        if rng.random() < _VISITORS:
            if (speed[index, axis] > 0) == ahead:
                high[index, axis] = SIZE + beyond
            else:
                low[index, axis] = -beyond


def _folded(place: Floats, low: Floats, high: Floats) -> Floats:
    """Places of what moves on a line and turns back at both ends."""
    span = high - low
    along = np.mod(place - low, 2 * span)
    folded: Floats = low + np.minimum(along, 2 * span - along)
    return folded


def _picture(
    plan: Plan, poses: Floats, ground: npt.NDArray[np.float32], noise: np.random.Generator
) -> Scene:
    size = len(ground)
    canvas = ground.copy()
    instances = np.zeros((size, size), np.uint8)
    placed: list[_Placed] = []
    for index, (x, y, radius, angle) in enumerate((poses * [*[size / SIZE] * 3, 1.0]).tolist()):
        colour, shape = int(plan.colours[index]), int(plan.shapes[index])
        new = _placed_at(colour, shape, (x, y, radius, angle), size)
        _draw(new, placed, instances, canvas, plan.tints[index])
    count = len(placed)
    visible = np.bincount(instances.ravel(), minlength=count + 1)[1:]
    seen = visible >= LEAST_PIXELS * (size / SIZE) ** 2
    kept = np.concatenate([[True], seen])
    instances[~kept[instances]] = 0
    areas = np.array([one.area for one in placed])
    return Scene(
        image=_photographed(noise, canvas),
        instances=instances,
        shapes=tuple(SHAPES[index] for index in plan.shapes),
        colours=tuple(COLOURS[index] for index in plan.colours),
        boxes_xyxy=_boxes(instances, count),
        visible_shares=np.where(seen, visible / areas, 0.0).astype(np.float32),
    )


def _boxes(instances: npt.NDArray[np.uint8], count: int) -> npt.NDArray[np.float32]:
    """(N, 4) around the visible part of each shape, zeros where there is none."""
    boxes = np.zeros((count, 4), np.float32)
    for index in range(count):
        mask = instances == index + 1
        across, down = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
        if len(across):
            boxes[index] = (across[0], down[0], across[-1] + 1, down[-1] + 1)
    return boxes
