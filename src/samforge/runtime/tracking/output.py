"""When a frame leaves: it waits out the hot start, so that no removed object was ever shown.

Files and streams go through the same functions, so at one delay they give the same output.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any

from samforge.runtime.tracking.constants import Rules
from samforge.runtime.tracking.state import Decisions, Shown


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Held:
    """A decided frame on its way out."""

    frame: int
    """Number of the frame."""
    shown: tuple[Shown, ...]
    """Its objects, without those that were hidden on it or removed since."""
    payload: Any = None
    """What belongs to the frame: pixels, masks. Not looked into."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Release:
    """What leaves after a frame, and what goes on waiting."""

    waiting: tuple[Held, ...] = ()
    """Oldest first; fewer than the delay."""
    released: tuple[Held, ...] = ()
    """Oldest first."""


def held_from_decisions(decisions: Decisions, payload: Any = None) -> Held:
    """The frame as it would leave now: without the objects hidden or removed on it."""
    gone = decisions.removed_ids | set(decisions.hidden)
    shown = tuple(item for item in decisions.shown if item.id not in gone)
    return Held(frame=decisions.frame, shown=shown, payload=payload)


def release(
    waiting: tuple[Held, ...],
    decisions: Decisions,
    rules: Rules,
    payload: Any = None,
    *,
    delay: int | None = None,
) -> Release:
    """Let a decided frame in, take removed objects out of all that wait, let the oldest out.

    With a delay of 15 frame 0 leaves once frame 14 is decided, the last on which an object of
    frame 0 can be removed. With a delay of 0, or where nothing is removed, a frame leaves at once.

    Args:
        waiting: What the call before left.
        decisions: The next frame.
        rules: ``hot_start_frames`` is the delay.
        payload: What belongs to the frame.
        delay: Frames that a frame waits for after it is decided; None for what the rules need. With
            fewer an object may be removed that was shown.
    """
    removed = decisions.removed_ids
    line = tuple(without_ids(held, removed) for held in waiting)
    line = (*line, held_from_decisions(decisions, payload))
    if delay is None:
        delay = max(0, rules.hot_start_frames - 1) if rules.removes else 0
    leaving = max(0, len(line) - delay)
    return Release(waiting=line[leaving:], released=line[:leaving])


def drain(waiting: tuple[Held, ...]) -> Release:
    """Let all out: the video has ended."""
    return Release(waiting=(), released=waiting)


def without_ids(held: Held, ids: AbstractSet[int]) -> Held:
    """The frame without some objects."""
    if not ids:
        return held
    return replace(held, shown=tuple(item for item in held.shown if item.id not in ids))
