"""Objects followed to a frame: begun in one place, asked for where the frame is decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from samforge.runtime.pending import Pending
from samforge.runtime.tracking.calls import begin_follow
from samforge.runtime.tracking.objects import TrackedObject, Turn
from samforge.runtime.tracking.seen import Seen, refuse_unusable
from samforge.runtime.tracking.stacks import MaskStack


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Followed:
    """What the tracker says of the objects that lived before a frame."""

    seen: Seen
    """N objects, by ascending id; masks as the decoder gave them."""
    filled: MaskStack
    """N, those of phrases without small holes and specks: only theirs, as at Meta's."""


def begin_following(turn: Turn, objects: Mapping[int, TrackedObject]) -> Pending[Followed]:
    """Begin to follow objects to a frame.

    Args:
        turn: The frame.
        objects: By ascending id; each has something to remember.

    Returns:
        What is seen. That an answer holds NaN is said when it is asked for.
    """
    banks = {number: one.bank for number, one in objects.items()}
    masks, pending = begin_follow(turn.parts, turn.features, banks, turn.frame, turn.way)
    text = [row for row, one in enumerate(objects.values()) if one.by_text]
    filled = masks.filled(turn.rules.hole_area, text) if text else masks
    filled.begin()

    def followed() -> Followed:
        seen = pending.result()
        # Filling holes brings no NaN and takes none away: the host looks at one of the two stacks.
        refuse_unusable(replace(seen, masks=filled), list(banks), turn.frame)
        return Followed(seen=seen, filled=filled)

    return Pending(followed)
