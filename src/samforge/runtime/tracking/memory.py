"""Which frames a frame attends to: pure functions over the numbers of frames.

A frame attends to memories (maps of features) and pointers (one vector each) of *conditioning*
frames, those of a birth, a reconditioning or a user's prompt, and of *ordinary* frames that were
only tracked. Source: ``_prepare_memory_conditioned_features`` of Meta's
sam3/model/sam3_tracker_base.py, and transformers' ``Sam3TrackerVideoModel``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from samforge.core.errors import SettingError
from samforge.runtime.postprocess import sigmoid
from samforge.runtime.tracking.constants import MemoryRules


@dataclass(frozen=True, kw_only=True, slots=True)
class Attended:
    """What one object attends to on one frame, in Meta's order."""

    memories: tuple[tuple[int, int], ...]
    """(frame, code): 0 for conditioning frames; 1 for the ordinary one nearest in time, and up."""
    pointers: tuple[tuple[int, int], ...]
    """(frame, distance): in frames; with memory selection, of ordinary ones, in ranks. Negative
    distances do not occur: conditioning frames that are still to come give no pointer."""
    pointer_span: int
    """What distances are divided by before they are encoded, at least 1."""


def effective_score(
    ious: npt.NDArray[Any], object_scores: npt.NDArray[Any], *, per_object: bool = False
) -> npt.NDArray[np.float32]:
    """Score by which memory selection knows a frame that is worth remembering.

    The predicted IoU times how surely the object is there, ``max(0, 2 * sigmoid(score) - 1)``. Meta
    gives all objects that were born on one frame one score: the mean of the one times the mean of
    the other, because its product runs over all pairs of objects.

    Args:
        ious: (N,), predicted IoU of objects of one birth.
        object_scores: (N,), logits.
        per_object: Whether each object has a score of its own, which differs from Meta's.

    Returns:
        (N,), float32.
    """
    there = np.maximum(np.float32(0), 2 * sigmoid(object_scores.reshape(-1)) - 1)
    values = np.asarray(ious, np.float32).reshape(-1)
    if per_object or len(values) == 0:
        return there * values
    return np.full(len(values), np.mean(there) * np.mean(values), np.float32)


def nearest_conditioning(
    conditioning: Collection[int], frame: int, rules: MemoryRules
) -> tuple[int, ...]:
    """The conditioning frames that a frame attends to.

    All of them, ascending, while they are few. Else, in this order: the first one if it is to be
    kept, the nearest one before the frame, the nearest one from it on, and others by their
    distance, of equal ones the earlier frame.
    """
    frames = sorted(conditioning)
    if len(frames) <= rules.conditioning:
        return tuple(frames)
    before = [number for number in frames if number < frame]
    after = [number for number in frames if number >= frame]
    behind = [number for number in after if number > frame]
    first = (before[:1] or behind[-1:]) if rules.keep_first else []
    # A dict keeps the order and drops what is named twice.
    taken = dict.fromkeys([*first, *before[-1:], *after[:1]])
    others = sorted((number for number in frames if number not in taken), key=_distance(frame))
    return tuple([*taken, *others][: max(rules.conditioning, len(taken))])


def _distance(frame: int) -> Any:
    return lambda number: (abs(number - frame), number)


def attended_frames(
    conditioning: Collection[int],
    ordinary: Mapping[int, float],
    frame: int,
    rules: MemoryRules,
    *,
    length: int | None = None,
    reverse: bool = False,
) -> Attended:
    """Choose the memories and pointers of a frame.

    Args:
        conditioning: Numbers of the conditioning frames that are known.
        ordinary: Numbers of the others, with their scores for memory selection.
        frame: The frame that attends.
        rules: How many, and which.
        length: Frames of the video; None if it is not known, or a stream.
        reverse: Whether the video runs backwards.

    Raises:
        SettingError: There is no conditioning frame: the object has not begun.
    """
    if not conditioning:
        raise SettingError(
            f"Frame {frame} has no conditioning frame to attend to. Prompt the object first."
        )
    limit = rules.pointers if length is None else min(length, rules.pointers)
    selected = nearest_conditioning(conditioning, frame, rules)
    unselected = set(conditioning) - set(selected)
    if rules.least_score is None:
        ranks = _by_time(frame, rules, reverse=reverse)
        steps = _window(frame, limit, length, reverse=reverse)
    else:
        worth = [number for number, score in ordinary.items() if score > rules.least_score]
        recent = _recent(worth, frame, limit, rules.stride, length=length, reverse=reverse)
        ranks = dict(enumerate(recent[: rules.memories - 1], start=1))
        # The oldest gives no pointer: so it is at Meta's.
        steps = dict(enumerate(recent[: min(limit - 1, len(recent) - 1)], start=1))
    known = ordinary.keys() | unselected
    giving = ordinary.keys() if rules.all_conditioning_pointers else known
    sign = -1 if reverse else 1
    of_conditioning = sorted(conditioning) if rules.all_conditioning_pointers else selected
    past = [(number, (frame - number) * sign) for number in of_conditioning]
    return Attended(
        memories=(
            *((number, 0) for number in selected),
            *((ranks[rank], rank) for rank in sorted(ranks, reverse=True) if ranks[rank] in known),
        ),
        pointers=(
            *((number, distance) for number, distance in past if distance >= 0),
            *((steps[step], step) for step in sorted(steps) if steps[step] in giving),
        ),
        pointer_span=max(1, limit - 1),
    )


def _by_time(frame: int, rules: MemoryRules, *, reverse: bool) -> dict[int, int]:
    """Code -> frame: the previous one, then every ``stride``-th."""
    sign, stride = (-1 if reverse else 1), rules.stride
    ranks = {1: frame - sign}
    # The second is the nearest multiple of the stride that is two frames away or more.
    second = -(-(frame + 2) // stride) * stride if reverse else (frame - 2) // stride * stride
    return ranks | {rank: second - sign * (rank - 2) * stride for rank in range(2, rules.memories)}


def _window(frame: int, limit: int, length: int | None, *, reverse: bool) -> dict[int, int]:
    """Distance -> frame, within the video."""
    sign = -1 if reverse else 1
    steps = {step: frame - sign * step for step in range(1, limit)}
    end = np.inf if length is None else length
    return {step: number for step, number in steps.items() if 0 <= number < end}


def _recent(
    worth: Collection[int],
    frame: int,
    limit: int,
    stride: int,
    *,
    length: int | None,
    reverse: bool,
) -> list[int]:
    """Frames worth remembering, nearest first, behind the previous frame, which always counts.

    The previous frame takes its rank even where it is a conditioning frame, or unknown. Frame 0 is
    none of the others: so it is at Meta's.
    """
    sign = -1 if reverse else 1
    if frame == (0 if not reverse else (length or 0) - 1):
        return []
    previous = frame - sign
    nearest = [
        number
        for number in sorted(worth, reverse=not reverse)
        if (number - previous) * sign <= 0
        and (number - previous) % stride == 0
        and (reverse or number > 0)
    ][: max(1, limit - 1)]
    return nearest if previous in nearest else [previous, *nearest]


@dataclass(frozen=True, kw_only=True, slots=True)
class Needed:
    """What later frames may attend to: all else can go."""

    memories: frozenset[int]
    """Frames whose map of features may be attended to."""
    pointers: frozenset[int]
    """Frames whose pointer may be."""


def needed_frames(
    conditioning: Collection[int],
    ordinary: Mapping[int, float],
    now: int,
    rules: MemoryRules,
    *,
    reverse: bool = False,
) -> Needed:
    """Which known frames any frame after ``now`` can attend to, in one direction.

    What is left out is never attended to again, so forgetting it changes nothing. Conditioning
    frames that are still to come are all needed. The number of the others is bounded, but for
    pointers under ``all_conditioning_pointers``, which transformers keeps for ever.
    """
    sign = -1 if reverse else 1
    ages = {number: (now - number) * sign for number in (*conditioning, *ordinary)}
    past = sorted((number for number in conditioning if ages[number] >= 0), key=ages.__getitem__)
    lasting = {number for number in conditioning if ages[number] < 0} | set(
        past[: rules.conditioning]
    )
    if rules.keep_first:
        lasting |= set(past[-1:])
    if rules.least_score is None:
        reach = rules.stride * (rules.memories - 2)
        memories = {number for number, age in ages.items() if age <= reach}
        pointers = {number for number, age in ages.items() if age <= rules.pointers - 2}
        pointers |= memories
    else:
        worth = [number for number, score in ordinary.items() if score > rules.least_score]
        newest = {number for number in ordinary if ages[number] <= 0}
        memories = newest | _nearest(worth, ages, rules.memories - 1, rules.stride)
        pointers = newest | _nearest(worth, ages, rules.pointers - 1, rules.stride)
    # One more than is selected, without its features: that there are more decides the order.
    pointers |= set(past[: rules.conditioning + 1])
    if rules.all_conditioning_pointers:
        pointers |= set(conditioning)
    return Needed(memories=frozenset(memories | lasting), pointers=frozenset(pointers | lasting))


def _nearest(worth: Collection[int], ages: Mapping[int, int], count: int, stride: int) -> set[int]:
    """The newest ``count`` frames of each grid that the stride may fall on."""
    taken: set[int] = set()
    for grid in range(stride):
        on_grid = [number for number in worth if number % stride == grid]
        taken |= set(sorted(on_grid, key=ages.__getitem__)[:count])
    return taken
