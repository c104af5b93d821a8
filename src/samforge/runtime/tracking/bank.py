"""What one object remembers: a bounded bank of arrays, and what a frame takes from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from samforge.core.errors import SettingError, ShapeError
from samforge.runtime.tracking.constants import META, MemoryRules
from samforge.runtime.tracking.memory import Attended, Needed, attended_frames, needed_frames

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Memory:
    """What is remembered of one frame.

    Raises:
        ShapeError: The pointer has another number of axes.
    """

    frame: int
    """Number of the frame."""
    pointer: Array
    """(D,), the object's pointer."""
    features: Any
    """Its map of features, or None where only the pointer is still needed. Not looked into: what
    ``TrackerParts.keep`` gave, on the host or on a device."""
    conditioning: bool = False
    """Whether it is a birth, a reconditioning or a prompt."""
    score: float = 0.0
    """Its effective score, for memory selection among ordinary frames."""
    pinned: bool = False
    """Whether it is never forgotten: a user's prompt, for passes in the other direction."""

    def __post_init__(self) -> None:
        if self.pointer.ndim != 1:
            raise ShapeError(f"A memory wants a pointer (D,), got {self.pointer.shape}.")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MemoryBank:
    """The memories of one object.

    Raises:
        SettingError: Two memories are of one frame, or they are not in order.
    """

    memories: tuple[Memory, ...] = ()
    """By ascending frame."""

    def __post_init__(self) -> None:
        frames = [memory.frame for memory in self.memories]
        if frames != sorted(set(frames)):
            raise SettingError(
                f"A bank wants one memory a frame, in order, got {frames[:20]}. Add by remember()."
            )

    def __iter__(self) -> Iterator[Memory]:
        return iter(self.memories)

    def __len__(self) -> int:
        return len(self.memories)

    @property
    def conditioning(self) -> tuple[int, ...]:
        """Conditioning frames, ascending."""
        return tuple(memory.frame for memory in self.memories if memory.conditioning)

    @property
    def ordinary(self) -> dict[int, float]:
        """The other frames, ascending, with their scores."""
        return {memory.frame: memory.score for memory in self.memories if not memory.conditioning}

    @property
    def size_bytes(self) -> int:
        """Bytes of all arrays, wherever they are."""
        return sum(
            int(memory.pointer.nbytes + (0 if memory.features is None else memory.features.nbytes))
            for memory in self.memories
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Gathered:
    """What memory attention takes for one object: M memories and P pointers.

    The axis of objects is not there yet: those of equal M and P can be stacked.
    """

    features: tuple[Any, ...]
    """M maps of features, as they were kept."""
    memory_codes: npt.NDArray[np.int64]
    """(M,): 0 for conditioning frames, else 1 and up."""
    pointers: Array
    """(P, D)."""
    pointer_times: npt.NDArray[np.float32]
    """(P,): distances as shares of the span, what the sine code is made of."""


def remember(
    bank: MemoryBank, memory: Memory, rules: MemoryRules = META.memory, *, reverse: bool = False
) -> MemoryBank:
    """Add a frame, in place of what was known of it, and forget what no later frame attends to.

    Args:
        bank: What was known.
        memory: The newest frame in the direction of time, or an older one that was corrected. Pin
            prompts that are given before a pass begins: it is taken to have come this far.
        rules: Which memories are attended to.
        reverse: Whether the video runs backwards.
    """
    others = [known for known in bank if known.frame != memory.frame]
    grown = sorted([*others, memory], key=lambda known: known.frame)
    # Prompts may lie ahead; ordinary frames are where the pass has been.
    passed = [known.frame for known in grown if not known.conditioning or known is memory]
    now = min(passed) if reverse else max(passed)
    return _forgotten(tuple(grown), now, rules, reverse=reverse)


def forget(
    bank: MemoryBank, now: int, rules: MemoryRules = META.memory, *, reverse: bool = False
) -> MemoryBank:
    """Drop what no frame after ``now`` can attend to; pinned memories stay as they are."""
    return _forgotten(bank.memories, now, rules, reverse=reverse)


def _forgotten(
    memories: tuple[Memory, ...], now: int, rules: MemoryRules, *, reverse: bool
) -> MemoryBank:
    needed = _needed(_outline(memories), now, rules, reverse)
    kept = []
    for memory in memories:
        if memory.pinned or memory.frame in needed.memories:
            kept.append(memory)
        elif memory.frame in needed.pointers:
            kept.append(memory if memory.features is None else _without_features(memory))
    return MemoryBank(memories=tuple(kept))


def _without_features(memory: Memory) -> Memory:
    return Memory(
        frame=memory.frame,
        pointer=memory.pointer,
        features=None,
        conditioning=memory.conditioning,
        score=memory.score,
        pinned=memory.pinned,
    )


_Outline: TypeAlias = tuple[tuple[int, float | None], ...]
"""Frames with their scores, None for conditioning ones: all that decides what is attended to.

Objects that began together have the same, so that one of them is decided for all."""


def _outline(memories: tuple[Memory, ...]) -> _Outline:
    return tuple([(one.frame, None if one.conditioning else one.score) for one in memories])


def _frames(outline: _Outline) -> tuple[tuple[int, ...], dict[int, float]]:
    """Conditioning frames, and the others with their scores."""
    conditioning = tuple(frame for frame, score in outline if score is None)
    return conditioning, {frame: score for frame, score in outline if score is not None}


@lru_cache(maxsize=256)
def _needed(outline: _Outline, now: int, rules: MemoryRules, reverse: bool) -> Needed:
    conditioning, ordinary = _frames(outline)
    return needed_frames(conditioning, ordinary, now, rules, reverse=reverse)


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """What objects of one outline attend to on a frame."""

    attended: Attended
    codes: npt.NDArray[np.int64]
    times: npt.NDArray[np.float32]


@lru_cache(maxsize=256)
def _plan(
    outline: _Outline, frame: int, rules: MemoryRules, length: int | None, reverse: bool
) -> _Plan:
    conditioning, ordinary = _frames(outline)
    attended = attended_frames(conditioning, ordinary, frame, rules, length=length, reverse=reverse)
    span = attended.pointer_span
    codes = np.array([code for _, code in attended.memories], np.int64)
    times = np.array([np.float32(far) / span for _, far in attended.pointers], np.float32)
    codes.flags.writeable = times.flags.writeable = False  # of all objects alike
    return _Plan(attended, codes, times)


def gather(
    bank: MemoryBank,
    frame: int,
    rules: MemoryRules = META.memory,
    *,
    length: int | None = None,
    reverse: bool = False,
) -> Gathered:
    """Collect what a frame attends to; ``TrackerParts.recall`` joins it for several objects.

    Args:
        bank: What the object remembers.
        frame: The frame that attends.
        rules: How many memories, and which.
        length: Frames of the video; None for a stream.
        reverse: Whether the video runs backwards.

    Raises:
        SettingError: There is no conditioning frame, or a map of features was forgotten, which
            happens only if the direction of time changed.
    """
    plan = _plan(_outline(bank.memories), frame, rules, length, reverse)
    known = {memory.frame: memory for memory in bank.memories}
    return Gathered(
        features=tuple([_features(known[number]) for number, _ in plan.attended.memories]),
        memory_codes=plan.codes,
        pointers=_pointers(known, plan.attended),
        pointer_times=plan.times,
    )


def _features(memory: Memory) -> Any:
    if memory.features is None:
        raise SettingError(
            f"The features of frame {memory.frame} were forgotten: the pass had gone on. Start the "
            "pass in the other direction from its first frame, with prompts that are pinned."
        )
    return memory.features


def _pointers(known: Mapping[int, Memory], attended: Attended) -> Array:
    rows = [known[number].pointer for number, _ in attended.pointers]
    one = next(iter(known.values())).pointer
    if not rows:
        return np.zeros((0, len(one)), one.dtype)
    return np.concatenate(rows).reshape(len(rows), len(one))
