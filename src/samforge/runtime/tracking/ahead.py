"""What a session begins of a frame before that is given, so that a device is never idle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from samforge.runtime.pending import Pending
from samforge.runtime.tracking.following import Followed, begin_following
from samforge.runtime.tracking.objects import TrackedObject, Turn
from samforge.runtime.tracking.parts import FoundInFrame


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Begun:
    """Work on a frame whose turn it is not yet. Whoever changes the session may make it vain."""

    turn: Turn
    """The frame."""
    phrases: tuple[str, ...] = ()
    """What is looked for on it."""
    found: Pending[FoundInFrame] | None = None
    """What they name; None where they are not looked for."""
    objects: tuple[TrackedObject, ...] = ()
    """Whom it was begun to follow, with what they remember."""
    followed: Pending[Followed] | None = None
    """Where they are."""


def following_next(begun: Begun | None, objects: Mapping[int, TrackedObject]) -> Begun | None:
    """What was begun of the next frame, and its objects, as they are now, on their way there."""
    if begun is None:
        return None
    try:
        followed = begin_following(begun.turn, objects)
    except Exception:  # noqa: BLE001  # raised again in its turn, when the frame is given
        return begun
    return replace(begun, objects=tuple(objects.values()), followed=followed)


def found_ahead(
    begun: Begun | None, turn: Turn, phrases: tuple[str, ...]
) -> Pending[FoundInFrame] | None:
    """What was begun to be found, if it is what a frame asks for."""
    if begun is None or begun.turn.encoded is not turn.encoded or begun.phrases != phrases:
        return None
    return begun.found


def followed_ahead(
    begun: Begun | None, turn: Turn, objects: Mapping[int, TrackedObject]
) -> Pending[Followed] | None:
    """What was begun to be followed, if the frame is that one and no object has changed since."""
    if begun is None or begun.turn.encoded is not turn.encoded or begun.turn.frame != turn.frame:
        return None
    same = len(begun.objects) == len(objects) and all(
        one is other for one, other in zip(begun.objects, objects.values(), strict=True)
    )
    return begun.followed if same else None
