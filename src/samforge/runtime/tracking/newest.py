"""The newest frame of a session: it may be prompted until the next one comes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from samforge.core.capabilities import MEMORY_ENCODER
from samforge.runtime.tracking.bank import Memory, remember
from samforge.runtime.tracking.calls import encode_memories
from samforge.runtime.tracking.drawn import Drawn, DrawnObject, with_object
from samforge.runtime.tracking.earlier import drawn_object
from samforge.runtime.tracking.objects import SessionState, TrackedObject, Turn
from samforge.runtime.tracking.output import Held, without_ids
from samforge.runtime.tracking.prompts import ObjectPrompt, answer
from samforge.runtime.tracking.seen import Seen, SeenMask, joined_seen
from samforge.runtime.tracking.state import Track


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Newest:
    """A frame that was taken, and what was prompted on it since."""

    turn: Turn
    """The frame with its features."""
    held: Held
    """As it left, or waits."""
    raw: Mapping[int, SeenMask]
    """Mask of each object, to be refined."""
    pending: Mapping[int, Seen]
    """Answers of prompts by id. Those of one frame are remembered together, as at Meta's: they
    share no pixel then."""


def prompted(
    state: SessionState, now: Newest, one: TrackedObject, track: Track, prompt: ObjectPrompt
) -> tuple[SessionState, Newest]:
    """Prompt an object on the newest frame; what is known of it there is refined.

    Raises:
        PromptError: The prompt does not fit the frame.
        FidelityError: The answer holds NaN.
    """
    known = now.raw.get(one.id)
    seen = answer(now.turn, prompt, None if known is None else known.host())
    drawn = drawn_object(one, track, seen, now.turn.encoded.size_hw)
    state = with_drawn(with_track(state, one, track), one.id, {now.turn.frame: drawn})
    return state, replace(
        now,
        held=with_object(now.held, one.id, drawn),
        raw={**now.raw, one.id: SeenMask(seen.masks, 0)},
        pending={**now.pending, one.id: seen},
    )


def settled(state: SessionState, now: Newest | None) -> SessionState:
    """The state with what was prompted on the newest frame remembered: one call for all of it."""
    if now is None or not now.pending:
        return state
    turn, seen = now.turn, joined_seen(now.pending.values())
    kept = encode_memories(
        turn.parts,
        MEMORY_ENCODER,
        turn.features,
        seen.masks,
        seen.scores,
        np.ones(len(seen), np.bool_),
    )
    objects = dict(state.objects)
    for (number, one), features in zip(now.pending.items(), kept, strict=True):
        memory = Memory(
            frame=turn.frame,
            pointer=one.pointers[0].copy(),
            features=features,
            conditioning=True,
        )
        bank = remember(objects[number].bank, memory, turn.way.rules, reverse=turn.way.reverse)
        objects[number] = replace(objects[number], bank=bank)
    return replace(state, objects=objects)


def without(now: Newest, number: int) -> Newest:
    """The frame without an object."""
    pending = {one: seen for one, seen in now.pending.items() if one != number}
    return replace(now, held=without_ids(now.held, {number}), pending=pending)


def with_track(state: SessionState, one: TrackedObject, track: Track) -> SessionState:
    """The state with an object, new or changed."""
    tracks = {known.id: known for known in state.tracking.tracks} | {track.id: track}
    tracking = replace(
        state.tracking,
        tracks=tuple(tracks.values()),
        next_id=max(state.tracking.next_id, one.id + 1),
    )
    return replace(state, tracking=tracking, objects={**state.objects, one.id: one})


def with_drawn(state: SessionState, number: int, drawn: Mapping[int, DrawnObject]) -> SessionState:
    """The state with an object as some frames show it, where they still wait."""
    waiting = tuple(
        with_object(held, number, drawn[held.frame]) if held.frame in drawn else held
        for held in state.waiting
    )
    return replace(state, waiting=waiting)


def alone(frame: int, number: int, drawn: DrawnObject, *, detected: bool = False) -> Held:
    """A frame with one object only."""
    empty = Drawn(size_hw=drawn.masks.size_hw, detected=detected)
    return with_object(Held(frame=frame, shown=(), payload=empty), number, drawn)
