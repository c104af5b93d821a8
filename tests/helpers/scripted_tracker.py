"""A tracker without a model: it follows what a script says, and its memories say whose they are.

A frame is an array whose first pixel tells its number. A pointer holds the number of a thing of the
script, memories hold that of the frame; both go in and out of a session as those of a model do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from samforge.runtime import EncodedImage
from samforge.runtime.pending import Pending
from samforge.runtime.tracking import FoundInFrame, TrackerFacts
from samforge.runtime.tracking.host_parts import OnHost

SIDE, SCALE = 16, 4
"""Cells along the edge of masks, and how much finer masks are that are given."""
SIZE_HW = (32, 48)
NOBODY = -1


@dataclass(frozen=True)
class Thing:
    """A rectangle that may move, and be away for some frames."""

    box: tuple[int, int, int, int]
    """left, top, right, bottom in cells on frame 0."""
    phrase: str = "cat"
    score: float = 0.9
    step: int = 0
    """Cells to the right on every frame; it comes back at the edge."""
    away: range = range(0)
    """Frames on which it is nowhere."""
    missed: range = range(0)
    """Frames on which the detector does not find it."""

    def mask(self, frame: int) -> np.ndarray:
        left, top, right, bottom = self.box
        cells = np.full((SIDE, SIDE), -4, np.float32)
        if frame not in self.away:
            cells[top:bottom, left:right] = 4
        return np.roll(cells, self.step * frame, axis=1)


def picture(frame: int, size_hw: tuple[int, int] = SIZE_HW) -> np.ndarray:
    """A frame that tells its number."""
    image = np.zeros((*size_hw, 3), np.uint8)
    image[0, 0, :2] = divmod(frame, 256)
    return image


@dataclass
class ScriptedParts(OnHost):
    """``TrackerParts`` of a script."""

    things: Sequence[Thing]
    digest: str = "0123456789abcdef"
    most_objects: int = 64
    most_pointers: int | None = None
    pointers: list[int] = field(default_factory=list)
    """Pointers of an object in every call of memory attention."""
    calls: list[tuple[str, int]] = field(default_factory=list)
    """(part, objects) of every call."""
    asked: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)
    """(frame, phrases) of every call of the detector."""
    poisoned: set[int] = field(default_factory=set)
    """Frames whose memories are not numbers."""

    @property
    def facts(self) -> TrackerFacts:
        return TrackerFacts(
            image_size=SIDE * SCALE,
            mask_side=SIDE,
            prompt_side=SIDE * SCALE,
            memory_side=SIDE * SCALE,
            digest=self.digest,
            most_objects=self.most_objects,
            most_points=16,
            most_pointers=self.most_pointers,
        )

    def encode(self, image: Any) -> EncodedImage:
        frame = int(image[0, 0, 0]) * 256 + int(image[0, 0, 1])
        names = ("tracker_features", "high_res_0", "high_res_1")
        return EncodedImage(
            features=dict.fromkeys(names, np.array([frame])),
            size_hw=image.shape[:2],
            image_size=SIDE * SCALE,
        )

    def begin_detect(
        self, encoded: EncodedImage, phrases: tuple[str, ...], thresholds: Sequence[float]
    ) -> Pending[FoundInFrame]:
        frame = int(encoded.features["high_res_0"][0])
        self.asked.append((frame, phrases))
        seen = [
            thing
            for thing in self.things
            if thing.phrase in phrases and frame not in (*thing.away, *thing.missed)
        ]
        found = FoundInFrame.from_masks(
            masks=np.array([one.mask(frame) for one in seen], np.float32).reshape(-1, SIDE, SIDE),
            scores=np.array([one.score for one in seen], np.float32),
            phrases=np.array([phrases.index(one.phrase) for one in seen], np.int64),
            boxes_xyxy=np.zeros((len(seen), 4), np.float32),
            best_scores={
                phrase: max((one.score for one in seen if one.phrase == phrase), default=0.0)
                for phrase in phrases
            },
        )
        return Pending.of(found)

    def run(self, part: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        found = getattr(self, f"_{part}")(inputs)
        self.calls.append((part, len(next(iter(found.values())))))
        return found

    def keep(self, memory: Any) -> list[Any]:
        return [Kept(int(one[0, 0]) if one[0, 0] == one[0, 0] else NOBODY) for one in memory]

    def recall(self, kept: Sequence[Sequence[Any]]) -> Any:
        return np.array([[[[float(one.frame)]] for one in row] for row in kept])

    def saved(self, kept: Any) -> Any:
        return np.array([kept.frame])

    def restored(self, array: Any) -> Any:
        return Kept(int(array[0]))

    def _thing_at(self, frame: int, mask: np.ndarray) -> int:
        """The thing that a mask (SIDE, SIDE) covers most of."""
        overlaps = [int(((one.mask(frame) > 0) & mask).sum()) for one in self.things]
        return int(np.argmax(overlaps)) if max(overlaps, default=0) else NOBODY

    def _look(self, frame: int, things: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        masks = np.full((len(things), 1, SIDE, SIDE), -1024, np.float32)
        scores = np.full((len(things), 1), -5, np.float32)
        for row, number in enumerate(things):
            if number != NOBODY and frame not in self.things[number].away:
                masks[row, 0], scores[row] = self.things[number].mask(frame), 5
        return masks, scores

    def _memory_attention(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        self.pointers.append(inputs["pointers"].shape[1])
        # The newest pointer says who it is.
        newest = inputs["pointer_times"].argmin(axis=1)
        things = inputs["pointers"][np.arange(len(newest)), newest, :1].copy()
        things[(inputs["memory"] == NOBODY).any(axis=(1, 2, 3))] = np.nan
        return {"conditioned": things}

    def _tracking_decoder(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        whose = inputs["conditioned"][:, 0]
        things = np.nan_to_num(whose, nan=NOBODY).astype(int).tolist()
        masks, scores = self._look(int(inputs["high_res_0"][0]), things)
        scores[np.isnan(whose)] = np.nan
        pointers = np.repeat(whose[:, None], 2, axis=1).astype(np.float32)
        iou = np.full((len(things), 1), 0.9, np.float32)
        return {
            "mask_logits": masks,
            "iou": iou,
            "object_pointer": pointers,
            "object_score": scores,
        }

    def _point_decoder(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        frame = int(inputs["high_res_0"][0])
        points, labels = inputs["points"][0] / SCALE, inputs["point_labels"][0]
        cells = np.zeros((SIDE, SIDE), np.bool_)
        wanted = points[labels != 0]
        if 2 in labels:
            (left, top), (right, bottom) = wanted[:2].astype(int)
            cells[top:bottom, left:right] = True
        else:
            for x, y in wanted.astype(int):
                cells[min(y, SIDE - 1), min(x, SIDE - 1)] = True
        masks, scores = self._look(frame, [self._thing_at(frame, cells)])
        number = self._thing_at(frame, cells)
        return {
            "mask_logits": np.repeat(masks, 4, axis=1),
            "iou": np.full((1, 4), 0.9, np.float32),
            "object_pointers": np.full((1, 4, 2), number, np.float32),
            "object_score": scores,
        }

    def _mask_prompt(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        frame = int(inputs["high_res_0"][0])
        small = inputs["mask"][:, 0, ::SCALE, ::SCALE] > 0.5
        things = [self._thing_at(frame, mask) for mask in small]
        there = inputs["mask"].any(axis=(1, 2, 3))
        return {
            "object_pointer": np.repeat(np.array(things, np.float32)[:, None], 2, axis=1),
            "object_score": np.where(there, 10, -10).astype(np.float32)[:, None],
        }

    def _memory_encoder(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        frame = int(inputs["tracker_features"][0])
        value = np.nan if frame in self.poisoned else frame
        return {"memory": np.full((len(inputs["mask_logits"]), 1, 1), value, np.float32)}

    _memory_encoder_text = _memory_encoder


@dataclass(frozen=True)
class Kept:
    """A memory that is no array: a session must not look into it."""

    frame: int
    nbytes: int = 100
