"""What the tracker says of objects on a frame: arrays of the host."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from samforge.core.errors import FidelityError
from samforge.runtime.tracking.state import Floats


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Seen:
    """N objects on one frame, arrays of the host."""

    masks: Floats
    """(N, 4s, 4s), logits; -1024 where the object is not there."""
    ious: Floats
    """(N,), as the tracker expects them."""
    pointers: Floats
    """(N, D)."""
    scores: Floats
    """(N,), logits: above 0 the object is there."""

    def __len__(self) -> int:
        return len(self.scores)


def nothing_seen(side: int) -> Seen:
    """No object, of masks of ``side`` cells."""
    return Seen(
        masks=np.zeros((0, side, side), np.float32),
        ious=np.zeros(0, np.float32),
        pointers=np.zeros((0, 0), np.float32),
        scores=np.zeros(0, np.float32),
    )


def joined_seen(seen: Iterable[Seen]) -> Seen:
    """Objects of one frame from several calls, at least one of them."""
    parts = list(seen)
    if len(parts) == 1:
        return parts[0]
    return Seen(
        masks=np.concatenate([one.masks for one in parts]),
        ious=np.concatenate([one.ious for one in parts]),
        pointers=np.concatenate([one.pointers for one in parts]),
        scores=np.concatenate([one.scores for one in parts]),
    )


def taken_rows(masks: Floats, rows: Sequence[int] | npt.NDArray[np.intp]) -> Floats:
    """Some rows of masks (N, h, w); the same array where they are all of them, in their order."""
    if len(rows) == len(masks) and np.array_equal(rows, np.arange(len(masks))):
        return masks
    return masks[np.asarray(rows, np.intp)]


def taken_seen(seen: Seen, rows: npt.NDArray[np.intp]) -> Seen:
    """Some of the objects, in the order of ``rows``."""
    return Seen(
        masks=taken_rows(seen.masks, rows),
        ious=seen.ious[rows],
        pointers=seen.pointers[rows],
        scores=seen.scores[rows],
    )


def refuse_nan(seen: Seen, ids: Sequence[int] | None, frame: int | None) -> None:
    """Stop at NaN before anything of it is remembered.

    Args:
        seen: An answer.
        ids: Of its objects; None for that of a prompt.
        frame: Where objects were followed to.

    Raises:
        FidelityError: There is any.
    """
    bad = np.isnan(seen.scores) | np.isnan(seen.ious) | np.isnan(seen.pointers).any(axis=1)
    bad |= np.isnan(seen.masks).any(axis=(1, 2))
    if not bad.any():
        return
    whose = (
        "a prompt"
        if ids is None
        else f"objects {[ids[row] for row in np.flatnonzero(bad).tolist()]}"
    )
    where = "" if frame is None else f" on frame {frame}: a memory of theirs is not a number, or"
    raise FidelityError(
        f"The tracker's answer for {whose} holds NaN{where or ':'} this artifact does not compute "
        "what the model does. The session is as it was before: finish() gives what is decided. "
        "Remove the objects to go on, or build the bundle with --precision fp32."
    )
