"""What the tracker says of objects on a frame."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from samforge.core.errors import FidelityError
from samforge.runtime.tracking.stacks import MaskStack, joined_masks
from samforge.runtime.tracking.state import Floats


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Seen:
    """N objects on one frame; all but their masks on the host."""

    masks: MaskStack
    """N masks of 4s x 4s cells; -1024 where the object is not there."""
    ious: Floats
    """(N,), as the tracker expects them."""
    pointers: Floats
    """(N, D)."""
    scores: Floats
    """(N,), logits: above 0 the object is there."""

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True, slots=True, eq=False)
class SeenMask:
    """The mask of one object, among those it came with."""

    masks: MaskStack
    row: int

    def host(self) -> Floats:
        """Its logits, (4s, 4s)."""
        logits: Floats = self.masks.taken([self.row]).host()[0]
        return logits


def nothing_seen(masks: MaskStack) -> Seen:
    """No object.

    Args:
        masks: None.
    """
    return Seen(
        masks=masks,
        ious=np.zeros(0, np.float32),
        pointers=np.zeros((0, 0), np.float32),
        scores=np.zeros(0, np.float32),
    )


def joined_seen(seen: Iterable[Seen]) -> Seen:
    """Objects of one frame from several prompts, at least one of them."""
    parts = list(seen)
    return Seen(
        masks=joined_masks([one.masks for one in parts]),
        ious=np.concatenate([one.ious for one in parts]),
        pointers=np.concatenate([one.pointers for one in parts]),
        scores=np.concatenate([one.scores for one in parts]),
    )


def refuse_unusable(seen: Seen, ids: Sequence[int] | None, frame: int | None) -> None:
    """Stop at NaN, and at infinity beside the masks, before anything of it is remembered.

    Masks that are infinite are refused where they are drawn.

    Args:
        seen: An answer.
        ids: Of its objects; None for that of a prompt.
        frame: Where objects were followed to.

    Raises:
        FidelityError: There is any.
    """
    nan = np.isnan(seen.scores) | np.isnan(seen.ious) | np.isnan(seen.pointers).any(axis=1)
    nan |= seen.masks.outline.has_nan
    infinite = np.isinf(seen.scores) | np.isinf(seen.ious) | np.isinf(seen.pointers).any(axis=1)
    bad = nan | infinite
    if not bad.any():
        return
    kind = "NaN" if nan.any() else "infinity"
    whose = (
        "a prompt"
        if ids is None
        else f"objects {[ids[row] for row in np.flatnonzero(bad).tolist()]}"
    )
    where = "" if frame is None else f" on frame {frame}: a memory of theirs is not a number, or"
    raise FidelityError(
        f"The tracker's answer for {whose} holds {kind}{where or ':'} this artifact does not "
        "compute what the model does. The session is as it was before: finish() gives what is "
        "decided. Remove the objects to go on, or build the bundle with --precision fp32."
    )
