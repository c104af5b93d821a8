"""The arrays of ``tracker.npz``: made-up features, and the parts behind a video session."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from tools.meta_weights import normal
from torch import Tensor
from torch.nn.functional import max_pool2d

from samforge.core.session import Session
from samforge.models.part import Part
from samforge.models.sam3.tracker.mask_decoder import NO_OBJECT
from samforge.runtime import EncodedImage
from samforge.runtime.tracking import (
    Attended,
    FoundInFrame,
    HostTrackerParts,
    facts_from_sessions,
)

Parts: TypeAlias = Callable[[str], Part]
"""Name of a part of the tracker -> part."""
Tensors: TypeAlias = dict[str, Tensor]

FILE = Path(__file__).with_name("tracker.npz")
IMAGE, SIDES = 224, (64, 32, 16)
"""Pixels of the image, cells along the edge of the maps."""
VIDEO_HW = (150, 200)


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


def look_back(
    parts: Parts,
    maps: Tensors,
    choice: Attended,
    memory: Mapping[int, Tensor],
    pointer: Mapping[int, Tensor],
) -> Tensors:
    """Run part ``memory_attention`` on chosen frames: memories (N, L, C), pointers (N, D)."""
    memories = torch.stack([memory[frame] for frame, _ in choice.memories], 1)
    pointers = torch.stack([pointer[frame] for frame, _ in choice.pointers], 1)
    offsets = torch.tensor([offset for _, offset in choice.memories])
    times = torch.tensor([distance / choice.pointer_span for _, distance in choice.pointers])
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


class Recorder(HostTrackerParts):
    """The parts behind a session, on made-up features: an image is the number of its frame.

    What was remembered of each frame is noted as it went into the memory encoder.
    """

    def __init__(
        self, sessions: Mapping[str, Session], parts: Parts, *, first: int, rounds: bool
    ) -> None:
        super().__init__(
            sessions,
            facts_from_sessions(sessions, image_size=IMAGE, digest="golden"),
            encode=self._made_up,
            detect=self._found,
            rounds=rounds,
        )
        self.parts, self.first = parts, first
        self.frames: dict[int, int] = {}
        self.encoded: list[EncodedImage] = []
        self.remembered: dict[int, dict[str, np.ndarray]] = {}
        self.decoded: dict[int, dict[str, np.ndarray]] = {}
        self.newest = -1
        self.detections: dict[int, FoundInFrame] = {}

    def run(self, part: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        if part.startswith("memory_encoder"):
            self.remembered[self.frames[id(inputs["tracker_features"])]] = {
                "mask": inputs["mask_logits"][:, 0],
                "object_score": inputs["object_score"],
            }
        out = super().run(part, inputs)
        if part == "tracking_decoder":
            frame = self.newest
            self.decoded[frame] = {
                "mask": out["mask_logits"][:, 0],
                "score": out["object_score"][:, 0],
            }
        return out

    def _made_up(self, frame: int) -> EncodedImage:
        maps = maps_of(self.parts, frame, self.first)
        features = {name: array.numpy() for name, array in maps.items()}
        self.frames[id(features["tracker_features"])] = self.newest = frame
        encoded = EncodedImage(features=features, size_hw=VIDEO_HW, image_size=IMAGE)
        self.encoded.append(encoded)  # kept, so that no other array gets its id
        return encoded

    def _found(self, encoded: EncodedImage, phrases: Any, thresholds: Any) -> FoundInFrame:
        return self.detections.get(self.frames[id(encoded.features["tracker_features"])], NOTHING)


NOTHING = FoundInFrame.from_masks(
    masks=np.zeros((0, SIDES[0], SIDES[0]), np.float32),
    scores=np.zeros(0, np.float32),
    phrases=np.zeros(0, np.int64),
    boxes_xyxy=np.zeros((0, 4), np.float32),
)
