"""An object that is prompted on an earlier frame: followed anew from there to the newest one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from samforge.core.capabilities import MEMORY_ENCODER, MEMORY_ENCODER_TEXT
from samforge.core.errors import PromptError, SettingError
from samforge.runtime.postprocess import sigmoid
from samforge.runtime.tracking.bank import Memory, MemoryBank, remember
from samforge.runtime.tracking.calls import encode_memories, follow
from samforge.runtime.tracking.drawn import DrawnObject, drawn_masks, require_finite
from samforge.runtime.tracking.memory import effective_score
from samforge.runtime.tracking.objects import TrackedObject, Turn
from samforge.runtime.tracking.prompts import ObjectPrompt, answer
from samforge.runtime.tracking.remembered import remembered_scores
from samforge.runtime.tracking.seen import Seen
from samforge.runtime.tracking.state import Track


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Retracked:
    """What came of it."""

    object: TrackedObject
    """With what it remembers now."""
    seen: dict[int, Seen]
    """One row by frame, for every frame that was looked at anew, in their order."""
    drawn: dict[int, DrawnObject]
    """The same as the frames show it."""


def retrack(
    one: TrackedObject,
    track: Track,
    prompt: ObjectPrompt,
    frames: Sequence[int],
    turn_of: Callable[[int], Turn],
) -> Retracked:
    """Prompt an object on a frame that has passed, and follow it to the newest one.

    What it saw before that frame stays, as far as it is still remembered; frames on which it was
    prompted or confirmed stay as they are. Rules of text video do not decide again.

    Args:
        one: The object, new or known.
        track: What the rules know of it.
        prompt: What shows it.
        frames: The frame of the prompt and all after it, in the direction of the video.
        turn_of: Reads a frame again.

    Raises:
        PromptError: The prompt does not fit the frame.
        FidelityError: An answer holds NaN.
    """
    start = turn_of(frames[0])
    bank = _before(one.bank, start)
    seen = {start.frame: answer(start, prompt, _earlier(bank, start))}
    bank = _with(bank, start, seen[start.frame], prompted=True, text=one.by_text)
    fixed = set(bank.conditioning)
    for number in frames[1:]:
        if number in fixed:
            continue
        turn = turn_of(number)
        found = follow(turn.parts, turn.features, {one.id: bank}, number, turn.way)
        if one.by_text:
            found = replace(found, masks=found.masks.filled(turn.rules.hole_area))
        bank = _with(bank, turn, found, prompted=False, text=one.by_text)
        seen[number] = found
    drawn = {
        number: drawn_object(one, track, found, start.encoded.size_hw)
        for number, found in seen.items()
    }
    return Retracked(object=replace(one, bank=bank), seen=seen, drawn=drawn)


def drawn_object(
    one: TrackedObject, track: Track, seen: Seen, size_hw: tuple[int, int]
) -> DrawnObject:
    """One object as a frame shows it."""
    rank = float(sigmoid(seen.scores[0]))
    require_finite(bool(seen.masks.known.finite.all()))
    return DrawnObject(
        label=one.label,
        phrase=track.phrase,
        score=track.score if one.by_text else rank,
        rank=rank,
        masks=drawn_masks(seen.masks.host(), size_hw),
    )


def read_again(frames: Sequence[Any] | None, number: int) -> Any:
    """Read a frame of a source once more.

    Raises:
        SettingError: The source is a live one.
        PromptError: It does not have the frame.
    """
    if frames is None:
        raise SettingError(
            f"Frame {number} has passed, and frames of a live source cannot be read again. Prompt "
            "the newest frame, or give frames= a sequence."
        )
    try:
        return frames[number]
    except (IndexError, KeyError) as error:
        raise PromptError(
            f"Frame {number} cannot be read again: the source has {len(frames)} frames."
        ) from error


def _before(bank: MemoryBank, turn: Turn) -> MemoryBank:
    """What was known on a frame, as far as it is still: and what was prompted later."""
    sign = -1 if turn.way.reverse else 1
    return MemoryBank(
        memories=tuple(
            memory
            for memory in bank
            if memory.features is not None
            and memory.frame != turn.frame
            and (memory.conditioning or (turn.frame - memory.frame) * sign > 0)
        )
    )


def _earlier(bank: MemoryBank, turn: Turn) -> Any:
    """The mask as it was tracked on a frame, (4s, 4s); None where the object had not begun."""
    sign = -1 if turn.way.reverse else 1
    if not any((turn.frame - frame) * sign > 0 for frame in bank.conditioning):
        return None
    return follow(turn.parts, turn.features, {0: bank}, turn.frame, turn.way).masks.host()[0]


def _with(bank: MemoryBank, turn: Turn, seen: Seen, *, prompted: bool, text: bool) -> MemoryBank:
    """The bank with what was seen on a frame."""
    part, scores = MEMORY_ENCODER, seen.scores
    if text and not prompted:
        part = MEMORY_ENCODER_TEXT
        scores = remembered_scores(seen.masks, turn.rules, turn.parts.facts.memory_side)
    kept = encode_memories(
        turn.parts, part, turn.features, seen.masks, scores, np.array([prompted])
    )
    memory = Memory(
        frame=turn.frame,
        pointer=seen.pointers[0].copy(),
        features=kept[0],
        conditioning=prompted,
        score=0.0 if prompted else float(effective_score(seen.ious, seen.scores)[0]),
    )
    return remember(bank, memory, turn.way.rules, reverse=turn.way.reverse)
