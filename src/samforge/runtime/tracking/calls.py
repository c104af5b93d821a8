"""Calls of the tracker's parts with objects as batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from samforge.core.capabilities import (
    MASK_PROMPT,
    MEMORY_ATTENTION,
    POINT_DECODER,
    TRACKING_DECODER,
)
from samforge.runtime.pending import Pending
from samforge.runtime.tracking.bank import Gathered, MemoryBank, gather
from samforge.runtime.tracking.constants import MemoryRules
from samforge.runtime.tracking.parts import Array, TrackerParts
from samforge.runtime.tracking.seen import Seen, nothing_seen, refuse_unusable
from samforge.runtime.tracking.stacks import MaskStack, Rows, joined_masks
from samforge.runtime.tracking.state import Floats

ABSENT = np.float32(-1024)
"""The logit of an object that is not in the picture, in both references."""
Item = TypeVar("Item")
_SMALL = ("iou", "object_pointer", "object_score")
"""What of the tracking decoder's answer the host wants beside the masks."""
FED = 32.0
"""An earlier mask is fed to the decoder within this range."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """The way a session goes through a video."""

    rules: MemoryRules
    """Which memories a frame attends to."""
    length: int | None = None
    """Frames of the video, where that is to count; None as in a stream."""
    reverse: bool = False
    """Whether it runs backwards."""


def begin_follow(
    parts: TrackerParts,
    features: Mapping[str, Any],
    banks: Mapping[int, MemoryBank],
    frame: int,
    way: Pass,
) -> tuple[MaskStack, Pending[Seen]]:
    """Begin to track objects: one call for all that have equally many memories and pointers.

    Args:
        parts: What runs the tracker.
        features: Of the frame.
        banks: What each object remembers, by id.
        frame: Its number.
        way: Which memories count.

    Returns:
        The masks, a row for each bank, in their order; and all of the answer, which may hold NaN.
    """
    groups: dict[tuple[int, int], list[tuple[int, Gathered]]] = {}
    for row, bank in enumerate(banks.values()):
        found = _within(
            gather(bank, frame, way.rules, length=way.length, reverse=way.reverse),
            parts.facts.most_pointers,
        )
        sizes = len(found.features), len(found.pointers)
        groups.setdefault(sizes, []).append((row, found))
    rows: list[int] = []
    begun: list[tuple[MaskStack, Pending[dict[str, Array]]]] = []
    for group in groups.values():
        for chunk in _chunks(group, parts.facts.most_objects):
            rows += [row for row, _ in chunk]
            begun.append(_begun(parts, features, [found for _, found in chunk]))
    if not begun:
        seen = nothing(parts)
        return seen.masks, Pending.of(seen)
    order = np.argsort(rows)
    masks = joined_masks([one for one, _ in begun]).taken(order)
    return masks, Pending(lambda: _seen(masks, [rest.result() for _, rest in begun], order))


def follow(
    parts: TrackerParts,
    features: Mapping[str, Any],
    banks: Mapping[int, MemoryBank],
    frame: int,
    way: Pass,
) -> Seen:
    """Track objects to a frame, and wait for it: see :func:`begin_follow`.

    Raises:
        FidelityError: An answer holds NaN: a memory, or what is computed from it, does.
    """
    masks, pending = begin_follow(parts, features, banks, frame, way)
    masks.begin()
    seen = pending.result()
    refuse_unusable(seen, list(banks), frame)
    return seen


def _within(found: Gathered, most: int | None) -> Gathered:
    """Leave out pointers of the oldest conditioning frames where the parts take fewer.

    Only transformers' rules come so far: they give a pointer of every conditioning frame.
    """
    if most is None or len(found.pointers) <= most:
        return found
    return Gathered(
        features=found.features,
        memory_codes=found.memory_codes,
        pointers=found.pointers[-most:],
        pointer_times=found.pointer_times[-most:],
    )


def _begun(
    parts: TrackerParts, features: Mapping[str, Any], gathered: Sequence[Gathered]
) -> tuple[MaskStack, Pending[dict[str, Array]]]:
    conditioned = parts.run(
        MEMORY_ATTENTION,
        {
            "tracker_features": features["tracker_features"],
            "memory": parts.recall([one.features for one in gathered]),
            "memory_offsets": np.stack([one.memory_codes for one in gathered]),
            "pointers": np.stack([one.pointers for one in gathered]),
            "pointer_times": np.stack([one.pointer_times for one in gathered]),
        },
    )
    out = parts.run(
        TRACKING_DECODER, {"conditioned": conditioned["conditioned"], **_fine(features)}
    )
    rest = parts.begin_to_host({name: out[name] for name in _SMALL})
    return parts.masks(out["mask_logits"][:, 0]), rest


def _seen(masks: MaskStack, rest: Sequence[dict[str, Array]], order: Rows) -> Seen:
    small = {name: np.concatenate([one[name] for one in rest])[order] for name in _SMALL}
    return Seen(
        masks=masks,
        ious=small["iou"][:, 0],
        pointers=small["object_pointer"],
        scores=small["object_score"][:, 0],
    )


def nothing(parts: TrackerParts) -> Seen:
    """No object, as the answer of a call that is not made."""
    side = parts.facts.mask_side
    return nothing_seen(parts.masks(np.zeros((0, side, side), np.float32)))


def ask_points(
    parts: TrackerParts,
    features: Mapping[str, Any],
    points: Floats,
    labels: npt.NDArray[np.int64],
    earlier: Floats | None,
) -> Seen:
    """Answer the points of one object.

    One point or none is doubtful: the best of three masks is taken, and its pointer. Box corners
    and several points give a single mask.

    Args:
        parts: What runs the tracker.
        features: Of the frame.
        points: (K, 2), x and y in pixels of the square image.
        labels: (K,), 1 on the object, 0 beside it, 2 and 3 corners of its box.
        earlier: (4s, 4s), what is known of its mask on this frame.

    Raises:
        FidelityError: The answer holds NaN.
    """
    side = parts.facts.mask_side
    mask = np.zeros((side, side), np.float32) if earlier is None else earlier.clip(-FED, FED)
    out = parts.run(
        POINT_DECODER,
        {
            "tracker_features": features["tracker_features"],
            **_fine(features),
            "points": points[None],
            "point_labels": labels[None],
            "mask_input": mask[None, None].astype(np.float32),
            "has_mask": np.array([earlier is not None]),
        },
    )
    ious, score = parts.to_host(out["iou"])[0], parts.to_host(out["object_score"])[0]
    best = 1 + int(ious[1:].argmax()) if len(labels) == 1 else 0
    logits = parts.to_host(out["mask_logits"])[:, best]
    seen = Seen(
        masks=parts.masks(np.where(score > 0, logits, ABSENT)),
        ious=ious[best : best + 1],
        pointers=parts.to_host(out["object_pointers"])[:, best],
        scores=score,
    )
    refuse_unusable(seen, None, None)
    return seen


def ask_masks(
    parts: TrackerParts, features: Mapping[str, Any], given: Any, masks: MaskStack
) -> Seen:
    """Make pointers of objects whose masks are given.

    Args:
        parts: What runs the tracker.
        features: Of the frame.
        given: (N, S, S), 0 to 1, at the side that part ``mask_prompt`` takes; where the parts run,
            or on the host.
        masks: The same as N masks of 4s x 4s cells: they are given back as they are.

    Raises:
        FidelityError: A pointer holds NaN.
    """
    answers = []
    for start in range(0, len(given), parts.facts.most_objects):
        chunk = given[start : start + parts.facts.most_objects, None]
        out = parts.run(
            MASK_PROMPT,
            {
                "tracker_features": features["tracker_features"],
                **_fine(features),
                "mask": chunk,
            },
        )
        answers.append(
            parts.begin_to_host({name: out[name] for name in ("object_pointer", "object_score")})
        )
    if not answers:
        return nothing(parts)
    rest = [one.result() for one in answers]
    seen = Seen(
        masks=masks,
        ious=np.ones(len(masks), np.float32),
        pointers=np.concatenate([one["object_pointer"] for one in rest]),
        scores=np.concatenate([one["object_score"][:, 0] for one in rest]),
    )
    refuse_unusable(seen, None, None)
    return seen


def encode_memories(  # the inputs of the part
    parts: TrackerParts,
    part: str,
    features: Mapping[str, Any],
    masks: MaskStack,
    scores: Floats,
    from_prompt: npt.NDArray[np.bool_],
) -> list[Any]:
    """Encode what objects look like on a frame.

    Args:
        parts: What runs the tracker.
        part: Which of the two memory encoders.
        features: Of the frame.
        masks: N masks of 4s x 4s cells.
        scores: (N,), logits: what is not above 0 is remembered as hidden.
        from_prompt: (N,), whose masks are taken as they are, inside or outside.

    Returns:
        N memories, as ``TrackerParts.keep`` gives them.
    """
    kept: list[Any] = []
    for start in range(0, len(masks), parts.facts.most_objects):
        chunk = slice(start, start + parts.facts.most_objects)
        out = parts.run(
            part,
            {
                "tracker_features": features["tracker_features"],
                "mask_logits": masks.taken(range(len(masks))[chunk]).values[:, None],
                "object_score": scores[chunk][:, None].astype(np.float32),
                "from_prompt": from_prompt[chunk],
            },
        )
        kept += parts.keep(out["memory"])
    return kept


def _chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _fine(features: Mapping[str, Any]) -> dict[str, Any]:
    return {name: features[name] for name in ("high_res_0", "high_res_1")}
