"""Prompts of a session: on which frame and of which object they may be, and what comes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from samforge.core.errors import PromptError, SettingError
from samforge.runtime.tracking.calls import Pass
from samforge.runtime.tracking.constants import Rules
from samforge.runtime.tracking.drawn import VideoFrame, frame_from_held, with_object
from samforge.runtime.tracking.earlier import retrack
from samforge.runtime.tracking.newest import Newest, alone, prompted, with_drawn, with_track
from samforge.runtime.tracking.objects import (
    SessionState,
    TrackedObject,
    Turn,
    phrase_of_prompt,
    track_of_prompt,
)
from samforge.runtime.tracking.prompts import ObjectPrompt
from samforge.runtime.tracking.seen import SeenMask
from samforge.runtime.tracking.state import Track


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Answer:
    """What came of a prompt."""

    id: int
    """The object."""
    frame: VideoFrame
    """The frame that was prompted as it is now; of an earlier frame the object alone."""
    revised: tuple[VideoFrame, ...] = ()
    """Frames that had left and show the object otherwise now, in the order of the video: that
    object alone. Frames that wait are changed where they are."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Asked:
    """A prompt of one object, checked."""

    one: TrackedObject
    """New or known."""
    track: Track
    """What the rules know of it."""
    prompt: ObjectPrompt
    """What shows it."""
    frame: int
    """Where."""


def asked_of_new(
    state: SessionState, rules: Rules, way: Pass, prompt: ObjectPrompt, label: str, frame: int
) -> Asked:
    """The prompt of an object that is not known yet.

    Raises:
        SettingError: There is no room for it.
    """
    most, count = rules.most_tracks, len(state.objects)
    if count >= most:
        raise SettingError(
            f"{count} objects live, and {most} may. Remove one, or raise most_objects."
        )
    number = state.tracking.next_id
    phrase = phrase_of_prompt(number, label, state.phrases)
    return Asked(
        one=TrackedObject(id=number, label=label, by_text=False, begun=frame),
        track=track_of_prompt(number, frame, phrase, rules, reverse=way.reverse),
        prompt=prompt,
        frame=frame,
    )


def asked_of_known(state: SessionState, number: int, prompt: ObjectPrompt, frame: int) -> Asked:
    """The prompt of an object that lives.

    Raises:
        PromptError: There is no such object.
    """
    one = known_object(state, number)
    track = next(track for track in state.tracking.tracks if track.id == number)
    return Asked(one=one, track=track, prompt=prompt, frame=frame)


def known_object(state: SessionState, number: int) -> TrackedObject:
    """An object that lives.

    Raises:
        PromptError: There is none of this id.
    """
    if number not in state.objects:
        was = 0 <= number < state.tracking.next_id
        told = ", ".join(map(str, state.objects)) or "none"
        raise PromptError(
            f"Object {number} {'has ended' if was else 'is unknown'}. Those that live: {told}."
        )
    return state.objects[number]


def checked_frame(
    state: SessionState, now: Newest | None, frames: Sequence[Any] | None, frame: int | None
) -> int:
    """The frame that a prompt is on.

    Args:
        state: Of the session.
        now: The newest frame, where it can be prompted.
        frames: What can be read again.
        frame: Its number; None for the newest.

    Raises:
        PromptError: It was not read yet.
        SettingError: It has passed, and cannot be read again.
    """
    first, last = state.first, state.tracking.frame
    if first is None or last is None:
        raise PromptError("No frame was read yet. Call step first, then prompt that frame.")
    where = last if frame is None else frame
    if not min(first, last) <= where <= max(first, last):
        raise PromptError(
            f"Frame {where} was not read yet: this session has come from frame {first} to {last}. "
            "Prompt it when it is the newest."
        )
    if (now is None or where != last) and frames is None:
        raise SettingError(
            f"Frame {where} has passed, and frames of a live source cannot be read again. Prompt "
            "the newest frame, or give frames= a sequence."
        )
    return where


def ask_now(state: SessionState, now: Newest, asked: Asked) -> tuple[SessionState, Newest, Answer]:
    """Prompt the newest frame."""
    state, now = prompted(state, now, asked.one, asked.track, asked.prompt)
    return state, now, Answer(id=asked.one.id, frame=frame_from_held(now.held))


def ask_earlier(
    state: SessionState, now: Newest | None, asked: Asked, turn_of: Callable[[int], Turn]
) -> tuple[SessionState, Newest | None, Answer]:
    """Prompt a frame that has passed, and follow the object from there.

    Args:
        state: With all prompts of the newest frame remembered.
        now: The newest frame.
        asked: The prompt.
        turn_of: Reads a frame again.
    """
    one, last = state.objects.get(asked.one.id, asked.one), state.tracking.frame or 0
    onwards = 1 if asked.frame <= last else -1
    numbers = range(asked.frame, last + onwards, onwards)
    new = retrack(one, asked.track, asked.prompt, numbers, turn_of)
    waits = {held.frame for held in state.waiting}
    frames = {
        number: frame_from_held(alone(number, one.id, drawn), only=[one.id])
        for number, drawn in new.drawn.items()
    }
    state = with_drawn(with_track(state, new.object, asked.track), one.id, new.drawn)
    if now is not None and last in new.drawn:
        now = replace(
            now,
            held=with_object(now.held, one.id, new.drawn[last]),
            raw={**now.raw, one.id: SeenMask(new.seen[last].masks, 0)},
        )
    answer = Answer(
        id=one.id,
        frame=frames[asked.frame],
        revised=tuple(found for number, found in frames.items() if number not in waits),
    )
    return state, now, answer
