"""A frame on its way out: masks at the frame's size, until it leaves as Detections with ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from samforge.core.detections import Detections
from samforge.core.errors import FidelityError
from samforge.core.masks import Masks
from samforge.core.packed_crop import PackedCrop
from samforge.runtime._resize import crop_above
from samforge.runtime.tracking.cells import boxes_meeting
from samforge.runtime.tracking.output import Held
from samforge.runtime.tracking.state import Floats, Shown


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class VideoFrame:
    """What is known of one frame of a video when it leaves the session."""

    index: int
    """Number of the frame."""
    detections: Detections
    """Objects that are to be seen, by ascending id; ``cut_off`` counts those that there was no room
    for. Scores of objects that a phrase found are those of their first detection, as in both
    references; of others the tracker's on this frame."""
    detected: bool
    """Whether phrases were looked for on this frame: False between every k-th, and without any."""
    removed: tuple[int, ...] = ()
    """Ids that ended on this frame; none of them was on a frame that left before, unless ``delay``
    was lowered."""
    born: tuple[int, ...] = ()
    """Ids that a phrase's detection began on this frame; some may be removed before it leaves."""
    matched: tuple[int, ...] = ()
    """Ids that a detection of this frame overlaps."""
    revised: bool = False
    """Whether the frame had left before: an earlier frame was prompted. Its detections are then
    those of the objects that were prompted alone."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DrawnObject:
    """One object of a frame."""

    label: str
    """Its phrase or the name that was given."""
    phrase: int
    """Number of the phrase: its objects share no pixel. Negative where there is none."""
    score: float
    """As it is given out, 0 to 1."""
    rank: float
    """Where two objects of a phrase meet, the higher rank has the pixel."""
    masks: Masks
    """One mask, at the frame's size."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Drawn:
    """All objects of a frame, those among them that may be removed before it leaves."""

    size_hw: tuple[int, int]
    """Height and width of the frame, pixels."""
    objects: Mapping[int, DrawnObject] = field(default_factory=dict)
    """By id."""
    detected: bool = False
    """Whether phrases were looked for."""
    dropped: int = 0
    """Detections that there was no room for."""
    removed: tuple[int, ...] = ()
    """Ids that ended on the frame."""
    born: tuple[int, ...] = ()
    """Ids that began on it."""
    matched: tuple[int, ...] = ()
    """Ids that a detection overlaps."""
    best_scores: Mapping[str, float] = field(default_factory=dict)
    """Best score of each phrase."""


def drawn_masks(logits: Floats, size_hw: tuple[int, int]) -> Masks:
    """Masks (N, 4s, 4s) of finite logits at the frame's size."""
    return Masks.from_crops((crop_above(one, np.float32(0), size_hw) for one in logits), size_hw)


def require_finite(finite: bool) -> None:
    """Stop where masks are not finite.

    Raises:
        FidelityError: They are not.
    """
    if not finite:
        raise FidelityError(
            "A mask holds infinity or NaN: this artifact does not compute what the model does. Run "
            "samforge compare on the bundle, or build it with --precision fp32."
        )


def with_object(held: Held, number: int, drawn: DrawnObject) -> Held:
    """The frame with an object, in place of what was there of it."""
    payload: Drawn = held.payload
    objects = dict(sorted({**payload.objects, number: drawn}.items()))
    others = [item for item in held.shown if item.id != number]
    shown = sorted([*others, Shown(id=number, source="track", row=0)], key=lambda item: item.id)
    return replace(held, shown=tuple(shown), payload=replace(payload, objects=objects))


def frame_from_held(held: Held, only: Iterable[int] | None = None) -> VideoFrame:
    """The frame as it leaves: removed objects take no pixel from others.

    Args:
        held: The frame.
        only: Ids of a revision; None gives all.
    """
    drawn: Drawn = held.payload
    ids = [item.id for item in held.shown if item.id in drawn.objects]
    packed = _exclusive({number: drawn.objects[number] for number in ids})
    seen = [number for number, one in packed.items() if one.bits.any()]
    if only is not None:
        seen = [number for number in seen if number in set(only)]
    masks = Masks(size_hw=drawn.size_hw, packed=tuple(packed[number] for number in seen))
    objects = [drawn.objects[number] for number in seen]
    detections = Detections(
        masks=masks,
        boxes_xyxy=masks.boxes.astype(np.float32),
        scores=np.array([one.score for one in objects], np.float32),
        labels=tuple(one.label for one in objects),
        size_hw=drawn.size_hw,
        best_scores=drawn.best_scores,
        cut_off=drawn.dropped,
        ids=np.array(seen, np.int64),
    )
    return VideoFrame(
        index=held.frame,
        detections=detections,
        detected=drawn.detected,
        removed=drawn.removed,
        born=drawn.born,
        matched=drawn.matched,
        revised=only is not None,
    )


def _exclusive(objects: Mapping[int, DrawnObject]) -> dict[int, PackedCrop]:
    """The mask of each object; within a phrase each pixel belongs to the highest rank alone."""
    masks = {number: _packed(one.masks) for number, one in objects.items()}
    phrases: dict[int, list[int]] = {}
    for number, one in objects.items():
        phrases.setdefault(one.phrase, []).append(number)
    for phrase, ids in phrases.items():
        meeting = _meeting({number: masks[number] for number in ids}) if phrase >= 0 else []
        if not meeting:
            continue
        taken = np.zeros(objects[ids[0]].masks.size_hw, np.bool_)
        # The sort is stable: of equal ranks the lower id.
        for number in sorted(meeting, key=lambda one: -objects[one].rank):
            crop, (top, left) = objects[number].masks.crop(0)
            window = taken[top : top + crop.shape[0], left : left + crop.shape[1]]
            masks[number] = PackedCrop.from_crop(crop & ~window, (top, left))
            window |= crop
    return masks


def _packed(masks: Masks) -> PackedCrop:
    (one,) = masks.packed
    return one if isinstance(one, PackedCrop) else one.inflated()


def _meeting(masks: Mapping[int, PackedCrop]) -> list[int]:
    """Objects whose crops meet another's: the pixels of all others are their own."""
    extents = np.array([one.extent for one in masks.values()])
    meets = boxes_meeting(extents, extents) & ~np.eye(len(masks), dtype=np.bool_)
    numbers = list(masks)
    return [numbers[row] for row in np.flatnonzero(np.logical_or.reduce(meets, axis=1)).tolist()]
