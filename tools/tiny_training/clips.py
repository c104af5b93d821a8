"""Clips for the tracker's training: planned on the processor, drawn on the device.

Drawing is the bottleneck of training on drawn scenes: numpy paints a hundred pictures a second.
Here every shape is an inequality over all pixels of all pictures of a batch at once. What is drawn
is what :mod:`samforge.models.tiny.crossing` draws, grounds and noise from another stream.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from samforge.models.tiny import scenes
from samforge.models.tiny.crossing import plan_crossing
from samforge.models.tiny.scenes import MOST_INSTANCES, SHAPES, SIZE

STILL_SHARE = 0.4
"""Of single pictures: as those of ``draw_scene``, so that clicks on images are learnt, too."""
LONG_GAP = 0.5
"""Share of clips with one long gap between two frames: something is found again."""
_STREAM = 6  # first part of the random seed, next to that of clips


@dataclass(frozen=True, kw_only=True, slots=True)
class Plans:
    """B clips of T frames with up to S shapes each, back to front."""

    shapes: Tensor
    """(B, S) int64, index into ``SHAPES``; -1 where there is none."""
    tints: Tensor
    """(B, S, 3), RGB, 0 to 1."""
    poses: Tensor
    """(B, T, S, 4), centre x and y, radius, angle."""

    def to(self, device: torch.device) -> Plans:
        """The same on a device."""
        return Plans(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def make_plans(index: int, clips: int, frames: int) -> Plans:
    """Plan batch ``index``: the same for the same arguments, whoever makes it."""
    shapes = np.full((clips, MOST_INSTANCES), -1, np.int64)
    tints = np.zeros((clips, MOST_INSTANCES, 3), np.float32)
    poses = np.ones((clips, frames, MOST_INSTANCES, 4), np.float32)
    for row in range(clips):
        seed = index * clips + row
        rng = np.random.default_rng([_STREAM, seed])
        if frames == 1 and rng.random() < STILL_SHARE:
            kinds, colours, placed = _still(rng)
        else:
            plan = plan_crossing(seed, split="train")
            kinds, colours, placed = plan.shapes, plan.tints, plan.poses(_times(rng, frames))
        shapes[row, : len(kinds)], tints[row, : len(kinds)] = kinds, colours
        poses[row, :, : len(kinds)] = placed
    most = int((shapes >= 0).sum(1).max())
    return Plans(
        shapes=torch.from_numpy(shapes[:, :most]),
        tints=torch.from_numpy(tints[:, :most]),
        poses=torch.from_numpy(poses[:, :, :most]),
    )


def _times(rng: np.random.Generator, frames: int) -> npt.NDArray[np.float64]:
    """Numbers of frames: a stride that is nearly even, and sometimes one long gap."""
    gaps = rng.integers(1, 5) + rng.integers(0, 2, frames)
    if frames > 2 and rng.random() < LONG_GAP:
        gaps[rng.integers(2, frames)] += rng.integers(6, 15)
    gaps[0] = rng.integers(0, 64)
    return np.cumsum(gaps).astype(np.float64)


def _still(
    rng: np.random.Generator,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Shapes, tints and poses as ``draw_scene`` has them, whatever hides what."""
    cast = scenes._cast(rng)  # noqa: SLF001  # the same pictures
    colours, kinds = np.array(cast).T
    radius = rng.uniform(*scenes._RADIUS, len(cast))  # noqa: SLF001
    place = rng.uniform(0.6 * radius, SIZE - 0.6 * radius, (2, len(cast)))
    angle = rng.uniform(0, 2 * math.pi, len(cast))
    jitter = rng.uniform(-scenes._JITTER, scenes._JITTER, (len(cast), 3))  # noqa: SLF001
    tints = scenes._RGB[colours] + jitter.astype(np.float32)  # noqa: SLF001
    return kinds, tints, np.stack([*place, radius, angle], -1)[None]


class PlannedBatches(IterableDataset[Plans]):
    """Batches ``first``, ``first + 1``, … without end."""

    def __init__(self, first: int, clips: int, frames: int) -> None:
        super().__init__()
        self.first, self.clips, self.frames = first, clips, frames

    def __iter__(self) -> Iterator[Plans]:
        """Worker w of W makes every W-th batch; the loader takes them in turn, hence in order."""
        worker = get_worker_info()
        index, stride = self.first, 1
        if worker is not None:
            index, stride = self.first + worker.id, worker.num_workers
        while True:
            yield make_plans(index, self.clips, self.frames)
            index += stride


def planned_batches(first: int, clips: int, frames: int, *, workers: int) -> Iterator[Plans]:
    """Batches in order, planned in worker processes."""
    return iter(
        DataLoader(
            PlannedBatches(first, clips, frames),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
        )
    )


def draw_clips(plans: Plans, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw all frames.

    Args:
        plans: On the device that draws.
        generator: Of the same device, for grounds and noise.

    Returns:
        Images (B, T, 3, H, W), -1 to 1 as the model reads them, and which shape is visible where,
        (B, T, H, W) uint8, 0 for the ground and i + 1 for shape i.
    """
    batch, frames = plans.poses.shape[:2]
    canvas = grounds(batch, generator)[:, None].expand(-1, frames, -1, -1, -1).clone()
    instances = torch.zeros(
        (batch, frames, SIZE, SIZE), dtype=torch.uint8, device=plans.poses.device
    )
    for index in range(plans.shapes.shape[1]):
        inside = _inside(plans.shapes[:, index], plans.poses[:, :, index])  # [B, T, H, W]
        instances.masked_fill_(inside, index + 1)
        tint = plans.tints[:, index][:, None, :, None, None]
        canvas = torch.where(inside[:, :, None], tint, canvas)
    noise = torch.randn(canvas.shape, generator=generator, device=canvas.device)
    levels = (canvas * 255 + noise * (scenes._NOISE * 255)).clamp_(0, 255).floor_()  # noqa: SLF001
    return levels / 127.5 - 1, instances


def grounds(count: int, generator: torch.Generator) -> Tensor:
    """Grounds (B, 3, H, W) as ``draw_scene`` has them, by the same sum of products."""
    device = generator.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator, device=device)

    clouds = uniform(-0.07, 0.07, count, 3, 5, 5) + uniform(-0.08, 0.08, count, 1, 5, 5)
    clouds = clouds + uniform(0.42, 0.6, count, 1, 1, 1) + uniform(-0.05, 0.05, count, 3, 1, 1)
    fine = uniform(-0.05, 0.05, count, 1, 29, 29)
    across, down = uniform(-0.4, 0.4, 2, count, 1, 1, 1)
    depth = 0.05 * (uniform(0, 1, count, 1, 1, 1) < 0.5)
    coarse_weights, fine_weights = (
        torch.from_numpy(scenes._stretch(cells, SIZE)).to(device)  # noqa: SLF001
        for cells in (5, 29)
    )
    steps = torch.arange(SIZE, dtype=torch.float32, device=device)
    stripes = depth * torch.sin(across * steps + down * steps[:, None])
    ground = coarse_weights @ clouds @ coarse_weights.T + fine_weights @ fine @ fine_weights.T
    return ground + stripes


def _inside(kinds: Tensor, poses: Tensor) -> Tensor:
    """Which pixels (B, T, H, W) lie in a shape; it must follow ``scenes._inside``.

    Args:
        kinds: (B,), index into ``SHAPES``; -1 for nothing.
        poses: (B, T, 4).
    """
    x, y, radius, angle = poses[..., None, None].unbind(2)
    steps = torch.arange(SIZE, dtype=torch.float32, device=poses.device) + 0.5
    across, down = (steps - x) / radius, (steps[:, None] - y) / radius
    cos, sin = angle.cos(), angle.sin()
    u, v = cos * across + sin * down, cos * down - sin * across
    left, up = u.abs(), v.abs()
    far, near = torch.maximum(left, up), torch.minimum(left, up)
    square = u * u + v * v
    normal = scenes._STAR_NORMAL  # noqa: SLF001
    wedge = (torch.remainder(torch.atan2(v, u), 0.4 * math.pi) - 0.2 * math.pi).abs()
    edge = square.sqrt() * torch.cos(0.2 * math.pi - wedge - normal)
    tests = {
        "circle": square < 1.0,
        "square": far < 0.75,
        "triangle": (v > -0.5) & (left * 0.8660254 + v * 0.5 < 0.5),
        "ring": (square < 1.0) & (square > 0.55**2),
        "cross": (near < 0.3) & (far < 1.0),
        "star": edge < math.cos(normal),
    }
    inside = torch.zeros_like(u, dtype=torch.bool)
    for number, name in enumerate(SHAPES):
        inside |= tests[name] & (kinds == number)[:, None, None, None]
    return inside
