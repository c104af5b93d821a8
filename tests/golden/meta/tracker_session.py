"""The arrays of ``tracker.npz``: made-up features, and Meta's predictor played on the parts.

The part of a host is played here as simply as it can be, one prompt and one frame after the other:
what the arrays hold is that the parts, called so, compute what Meta's predictor computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from tools.meta_weights import normal
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from samforge.models.part import Part
from samforge.models.sam3.tracker.mask_decoder import NO_OBJECT

Parts: TypeAlias = Callable[[str], Part]
"""Name of a part of the tracker -> part."""
Tensors: TypeAlias = dict[str, Tensor]

FILE = Path(__file__).with_name("tracker.npz")
IMAGE, SIDES, CELLS, MASK = 224, (64, 32, 16), 256, 256
"""Pixels of the image, cells along the edge of the maps, cells of the coarsest, side of masks that
are given."""
VIDEO_HW = (150, 200)
CONDITIONING, MEMORIES, POINTERS = 4, 7, 16
"""Largest numbers: conditioning frames, memories of them and of the frames before, pointers."""
FAR = 1024.0
"""Logit of a mask that is given, in the picture's size."""


def arrays_of_tracker() -> dict[str, np.ndarray]:
    """Read all arrays by name."""
    with np.load(FILE) as file:
        return {name: file[name] for name in file.files}


@lru_cache(maxsize=32)
def features(frame: int, level: int) -> Tensor:
    """Feature map of a frame before the mask decoder's convolutions, (1, 256, side, side)."""
    side = SIDES[level]
    coarse = normal("input.features.field", (256, 8, 40))[:, :, frame : frame + 8]
    fine = normal(f"input.features.{frame}.{level}", (256, side, side))
    spread = np.kron(coarse, np.ones((1, side // 8, side // 8)))
    return torch.from_numpy((spread + 0.5 * fine).astype(np.float32))[None]


def maps_of(parts: Parts, frame: int, first: int = 11) -> Tensors:
    """What part ``vision`` would give for a frame; most cases begin at the eleventh."""
    neck = parts("vision").module.neck
    with torch.inference_mode():
        return {
            "high_res_0": neck.conv_s0(features(first + frame, 0)),
            "high_res_1": neck.conv_s1(features(first + frame, 1)),
            "tracker_features": features(first + frame, 2),
        }


def floats_from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """Numbers of their bit patterns."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def as_maps(memory: Tensor) -> np.ndarray:
    """Memories (N, L, C) as (N, C, s, s)."""
    return memory.transpose(1, 2).unflatten(2, (SIDES[2], SIDES[2])).numpy()


def ask_points(
    parts: Parts,
    maps: Tensors,
    points: Any,
    labels: Any,
    *,
    mask_input: Tensor | None = None,
) -> Tensors:
    """Ask part ``point_decoder``: points (N, K, 2) in pixels of the image."""
    points, labels = torch.as_tensor(points).float(), torch.as_tensor(labels).long()
    count = len(points)
    has_mask = torch.full((count,), mask_input is not None)
    if mask_input is None:
        mask_input = torch.zeros(count, 1, SIDES[0], SIDES[0])
    own = {"points": points, "point_labels": labels, "mask_input": mask_input, "has_mask": has_mask}
    return parts("point_decoder")(maps | own)


def answer(found: Tensors, *, multimask: bool) -> Tensors:
    """The mask of several with the best IoU, or the single one; the pointer of the same token.

    As a video's session takes it: what is not in the picture has no mask.
    """
    iou = found["iou"]
    best = 1 + iou[:, 1:].argmax(1) if multimask else torch.zeros(len(iou), dtype=torch.int64)
    rows = torch.arange(len(iou))
    mask, present = found["mask_logits"][rows, best][:, None], found["object_score"] > 0
    return {
        "mask": torch.where(present[..., None, None], mask, NO_OBJECT),
        "iou": iou[rows, best][:, None],
        "pointer": found["object_pointers"][rows, best],
        "object_score": found["object_score"],
    }


def fill_holes(masks: Tensor, area: int) -> Tensor:
    """Give holes up to an area a logit of 10, as Meta's predictor for images does.

    Args:
        masks: (masks, side, side), logits.
        area: Largest number of cells, which touch at edges or corners.
    """
    hole = masks <= 0
    number = torch.arange(1, 1 + hole[0].numel(), dtype=torch.float32).view(hole.shape[1:])
    numbers, before = number * hole, torch.zeros(1)
    while not torch.equal(numbers, before):  # the highest number of a hole spreads through it
        before, numbers = numbers, max_pool2d(numbers[:, None], 3, 1, 1)[:, 0] * hole
    filled = masks.clone()
    for mask, own, inside in zip(filled, numbers.long(), hole, strict=True):
        small = torch.bincount(own.flatten(), minlength=2)[own] <= area
        mask[inside & small] = 10.0
    return filled


def nearest(frames: Iterable[int], frame: int, most: int) -> list[int]:
    """The closest frame before, the closest after, then the closest of the others."""
    frames = list(frames)
    if len(frames) <= most:
        return frames
    before = max((other for other in frames if other < frame), default=None)
    after = min((other for other in frames if other >= frame), default=None)
    chosen = [other for other in (before, after) if other is not None]
    others = sorted(set(frames) - set(chosen), key=lambda other: (abs(other - frame), other))
    return chosen + others[: most - len(chosen)]


@dataclass(frozen=True)
class Choice:
    """Which frames a frame looks back at."""

    memories: list[tuple[int, int]]
    """Offset (0: a conditioning frame) and frame."""
    pointers: list[tuple[int, int]]
    """Distance and frame."""
    span: int
    """Distances of pointers are divided by it."""


def choose(
    frame: int,
    conditioning: Iterable[int],
    ordinary: Iterable[int],
    *,
    frames: int,
    reverse: bool = False,
) -> Choice:
    """Choose as Meta's tracker does without selection of memories.

    Conditioning frames that are not among the nearest serve as ordinary ones. Pointers are those of
    the chosen conditioning frames on this side of time, and of ordinary frames near by.
    """
    step = -1 if reverse else 1
    chosen = nearest(conditioning, frame, CONDITIONING)
    others = (set(ordinary) | set(conditioning)) - set(chosen)
    span = min(frames, POINTERS) - 1
    before = [(distance, frame - step * distance) for distance in range(1, span + 1)]
    back = [(step * (frame - other), other) for other in chosen]
    return Choice(
        [(0, other) for other in chosen]
        + [pair for pair in reversed(before[: MEMORIES - 1]) if pair[1] in others],
        [pair for pair in back if pair[0] >= 0] + [pair for pair in before if pair[1] in others],
        span,
    )


def look_back(
    parts: Parts,
    maps: Tensors,
    choice: Choice,
    memory: Mapping[int, Tensor],
    pointer: Mapping[int, Tensor],
) -> Tensors:
    """Run part ``memory_attention`` on chosen frames: memories (N, L, C), pointers (N, D)."""
    memories = torch.stack([memory[frame] for _, frame in choice.memories], 1)
    pointers = torch.stack([pointer[frame] for _, frame in choice.pointers], 1)
    offsets = torch.tensor([offset for offset, _ in choice.memories])
    times = torch.tensor([distance / choice.span for distance, _ in choice.pointers])
    count = len(memories)
    return parts("memory_attention")(
        {
            "tracker_features": maps["tracker_features"],
            "memory": memories,
            "memory_offsets": offsets.expand(count, -1).contiguous(),
            "pointers": pointers,
            "pointer_times": times.expand(count, -1).contiguous(),
        }
    )


@dataclass
class Player:
    """Meta's predictor for one video: what it keeps of every frame, for all objects at once."""

    parts: Parts
    frames: int
    first: int = 11
    rounded: bool = True
    """Whether memories are kept as bfloat16, as the predictor does."""
    kept: dict[int, Tensors] = field(default_factory=dict)
    """mask, pointer, object_score and memory of each frame."""
    conditioning: set[int] = field(default_factory=set)

    def prompt(self, frame: int, answers: list[Tensors]) -> None:
        """Take the answers to prompts, one for each object, as what is known of a frame."""
        joined = {name: torch.cat([one[name] for one in answers]) for name in answers[0]}
        self._keep(frame, joined, from_prompt=True)
        self.conditioning.add(frame)

    def points(self, frame: int, points: Any, labels: Any) -> Tensors:
        """Ask by points, fractions of the picture; a mask of before is refined."""
        pixels = torch.tensor(points)[None] * IMAGE
        earlier = self.kept.get(frame)
        mask = None if earlier is None else earlier["mask"].clamp(-32, 32)
        found = ask_points(self.parts, self._maps(frame), pixels, [labels], mask_input=mask)
        return answer(found, multimask=len(labels) == 1)

    def mask(self, frame: int, mask: np.ndarray) -> Tensors:
        """Take a mask in the video's size as it is."""
        whole = torch.from_numpy(mask)[None, None].float()
        # Not made hard again: its edge stays soft.
        resized = interpolate(whole, size=(MASK, MASK), mode="bilinear", antialias=True)
        found = self.parts("mask_prompt")(self._maps(frame) | {"mask": resized})
        low = torch.where(whole > 0.5, FAR, -FAR)
        side = (SIDES[0], SIDES[0])
        return {
            "mask": interpolate(low, size=side, mode="bilinear", antialias=True),
            "iou": torch.ones(1, 1),
            "pointer": found["object_pointer"],
            "object_score": found["object_score"],
        }

    def step(self, frame: int, *, reverse: bool = False) -> None:
        """Track all objects to a frame."""
        ordinary = self.kept.keys() - self.conditioning
        choice = choose(
            frame, sorted(self.conditioning), ordinary, frames=self.frames, reverse=reverse
        )
        maps = self._maps(frame)
        memory = {frame: kept["memory"] for frame, kept in self.kept.items()}
        pointer = {frame: kept["pointer"] for frame, kept in self.kept.items()}
        conditioned = look_back(self.parts, maps, choice, memory, pointer)
        found = self.parts("tracking_decoder")(maps | conditioned)
        names = {"mask_logits": "mask", "object_pointer": "pointer"}
        self._keep(frame, {names.get(name, name): found[name] for name in found}, from_prompt=False)

    def video_mask(self, frame: int) -> np.ndarray:
        """Masks (N, height, width) in the video's size."""
        mask = interpolate(self.kept[frame]["mask"], size=VIDEO_HW, mode="bilinear")
        return (mask[:, 0] > 0).numpy()

    def _maps(self, frame: int) -> Tensors:
        return maps_of(self.parts, frame, self.first)

    def _keep(self, frame: int, found: Tensors, *, from_prompt: bool) -> None:
        memory = self.parts("memory_encoder")(
            {
                "tracker_features": self._maps(frame)["tracker_features"],
                "mask_logits": found["mask"],
                "object_score": found["object_score"],
                "from_prompt": torch.full((len(found["mask"]),), from_prompt),
            }
        )["memory"]
        if self.rounded:
            memory = memory.to(torch.bfloat16).float()
        self.kept[frame] = found | {"memory": memory}
