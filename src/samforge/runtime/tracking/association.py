"""Which detections and which tracks are the same thing: by the overlap of their masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from samforge.core.errors import ShapeError
from samforge.runtime.tracking.cells import Cells, Masks, cells_from_masks
from samforge.runtime.tracking.constants import Rules
from samforge.runtime.tracking.state import Detected, Floats, Track, Tracked

Rows = npt.NDArray[np.intp]


@dataclass(frozen=True, kw_only=True, slots=True)
class Association:
    """How detections and tracks of a frame relate."""

    new: tuple[int, ...]
    """Rows of detections that no track explains, ascending."""
    matched: Mapping[int, tuple[int, ...]]
    """Row of each detection -> ids it overlaps; empty where there are no tracks."""
    unmatched: tuple[int, ...]
    """Ids with a mask that no detection reaches."""
    empty: tuple[int, ...]
    """Ids without a mask."""
    candidates: Mapping[int, int]
    """Id -> row of the detection that may recondition it."""


def mask_ious(first: Masks | Cells, second: Masks | Cells) -> Floats:
    """Intersection over union of every mask of one stack with every mask of another.

    Args:
        first: (N, h, w), logits or booleans; a cell counts where it is above 0. Or their cells.
        second: (M, h, w).

    Returns:
        (N, M), float32; 0 where both masks are empty.

    Raises:
        ShapeError: The masks differ in size.
    """
    if not (len(first) and len(second)):
        return np.zeros((len(first), len(second)), np.float32)
    one, other = (
        stack if isinstance(stack, Cells) else cells_from_masks(stack) for stack in (first, second)
    )
    if one.size_hw != other.size_hw:
        raise ShapeError(
            f"Masks of {one.size_hw} and {other.size_hw} cells cannot be compared. Resize "
            "the logits of one of them first."
        )
    both = one.shared_with(other).astype(np.float32)  # exact up to 16.7 million cells
    areas = one.areas[:, None] + other.areas[None]
    either = areas.astype(np.float32) - both
    ious: Floats = both / np.maximum(either, np.float32(1))
    return ious


def kept_detections(found: Detected, rules: Rules) -> tuple[int, ...]:
    """Detections above the score, without those that a better one of their phrase covers.

    Of equal scores the lower row is the better one.

    Returns:
        Rows, ascending.
    """
    (rows,) = np.nonzero(found.scores > np.float32(rules.detection_score))
    if rules.nms_iou <= 0:
        return tuple(rows.tolist())
    best_first = rows[np.argsort(-found.scores[rows], kind="stable")]
    cells, phrases = found.cells.taken(best_first), found.phrases[best_first]
    covers = mask_ious(cells, cells) > np.float32(rules.nms_iou)
    covers &= phrases[:, None] == phrases[None]
    alive = np.ones(len(best_first), np.bool_)
    for row in np.flatnonzero(np.triu(covers, 1).any(axis=1)).tolist():
        if alive[row]:
            alive[row + 1 :] &= ~covers[row, row + 1 :]
    return tuple(sorted(best_first[alive].tolist()))


def associate(
    found: Detected, tracked: Tracked, tracks: Sequence[Track], rules: Rules
) -> Association:
    """Relate detections to tracks by the IoU of their masks.

    A detection is new if its score is high enough and it overlaps no track; where there is no track
    at all, every detection is. Many tracks may overlap one detection. A track is unmatched by a
    stricter threshold than a detection is new, so a track between the two is matched *and*
    unmatched.

    Args:
        found: N detections, those that are kept.
        tracked: M tracked masks.
        tracks: M tracks.
        rules: The thresholds.

    Returns:
        Rows count in ``found``. Of several detections that may recondition one track, the one of
        the highest row is taken; of several tracks that a detection overlaps equally, the one of
        the lowest id.

    Raises:
        ShapeError: There are more or fewer masks than tracks, or they differ in size.
    """
    if len(tracks) != len(tracked):
        raise ShapeError(
            f"{len(tracks)} tracks live, got {len(tracked)} tracked masks. Give one row for "
            "each, in the order of their ids."
        )
    if not tracks:
        everything = tuple(range(len(found)))
        return Association(new=everything, matched={}, unmatched=(), empty=(), candidates={})
    ids = np.array([track.id for track in tracks])
    phrases = np.array([track.phrase for track in tracks])
    ious = mask_ious(found.cells, tracked.cells)
    ious[found.phrases[:, None] != phrases[None]] = 0
    overlaps = ious >= np.float32(rules.match_iou)
    is_new = (found.scores >= np.float32(rules.birth_score)) & ~overlaps.any(axis=1)
    has_mask = tracked.cells.any
    reached = (ious >= np.float32(rules.track_iou)).any(axis=0)
    sure = (found.scores >= np.float32(rules.recondition_score)) & ~is_new
    sure &= ious.max(axis=1) >= np.float32(rules.recondition_iou)
    nearest = ious.argmax(axis=1)
    return Association(
        new=tuple(np.nonzero(is_new)[0].tolist()),
        matched={row: tuple(ids[overlaps[row]].tolist()) for row in range(len(found))},
        unmatched=tuple(ids[has_mask & ~reached].tolist()),
        empty=tuple(ids[~has_mask].tolist()),
        candidates={int(ids[nearest[row]]): int(row) for row in np.nonzero(sure)[0]},
    )
