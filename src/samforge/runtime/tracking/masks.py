"""What the rules do to logits: holes and specks, masks that give way to others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from samforge.runtime.tracking.cells import Masks, cells_from_masks
from samforge.runtime.tracking.state import Floats

SUPPRESSED = np.float32(-10)
"""The logit of what is suppressed: a probability of 0.00005."""
_NEIGHBOURS = np.ones((3, 3))


def filled_holes(masks: Floats, area: int) -> Floats:
    """Fill small holes and remove small specks, as Meta's ``fill_holes_in_mask_scores``.

    First components of the background of at most ``area`` cells become 0.1, then components of the
    mask of at most ``area`` cells, and of at most half of it, become -0.1. Cells that touch by a
    corner belong together.

    Args:
        masks: (M, h, w), logits.
        area: Cells; 0 changes nothing.

    Returns:
        (M, h, w), a new array.
    """
    filled = masks.copy()
    for window in _windows(filled, area):
        window[_small(window <= 0, area)] = np.float32(0.1)
        above = window > 0
        window[_small(above, min(area, int(above.sum()) // 2))] = np.float32(-0.1)
    return filled


def without_holes(masks: Floats, area: int, logit: np.float32) -> Floats:
    """Give holes of at most ``area`` cells a logit; cells that touch by a corner belong together.

    Args:
        masks: (M, h, w), logits.
        area: Cells.
        logit: What they become.

    Returns:
        (M, h, w), a new array.
    """
    filled = masks.copy()
    for window in _windows(filled, area):
        window[_small(window <= 0, area)] = logit
    return filled


def _windows(masks: Floats, area: int) -> Iterator[Floats]:
    """The part of each mask in which components of at most ``area`` cells are found whole.

    Background that reaches beyond a margin wider than ``area`` has more cells than that in it. A
    mask without cells has one component of background: all of it.
    """
    margin = area + 1
    for mask, box in zip(masks, cells_from_masks(masks).boxes.tolist(), strict=True):
        left, top, right, bottom = box
        if right == left:
            yield mask
            continue
        rows = slice(max(0, top - margin), bottom + margin)
        yield mask[rows, max(0, left - margin) : right + margin]


def _small(cells: npt.NDArray[np.bool_], area: int) -> npt.NDArray[np.bool_]:
    """Cells of components of at most ``area`` cells."""
    from scipy import ndimage

    if area <= 0:
        return np.zeros_like(cells)
    labels: npt.NDArray[np.int32]
    labels, _ = ndimage.label(cells, structure=_NEIGHBOURS)
    sizes = np.bincount(labels.ravel())
    sizes[0] = area + 1
    small: npt.NDArray[np.bool_] = (sizes <= area)[labels]
    return small


def suppressed_masks(masks: Floats, rows: npt.ArrayLike) -> Floats:
    """The masks with some of them emptied: every logit of ``rows`` is -10."""
    emptied = np.asarray(rows, np.intp)
    if not len(emptied):
        return masks
    silenced = masks.copy()
    silenced[emptied] = SUPPRESSED
    return silenced


def without_shrunk(masks: Floats, phrases: npt.ArrayLike, ratio: float) -> Floats:
    """Empty masks that keep too little beside the others, before they are remembered.

    Args:
        masks: (M, h, w), logits, in Meta's at the size that the memory encoder takes.
        phrases: (M,), numbers of the phrases.
        ratio: A share from 0 to 1.

    Returns:
        (M, h, w), where masks of :func:`shrunk_rows` are clamped to -10; all others
        stay as they are, overlaps included.
    """
    return clamped_rows(masks, shrunk_rows(masks, phrases, ratio))


def clamped_rows(masks: Floats, rows: npt.NDArray[np.intp]) -> Floats:
    """The masks (M, h, w) with those of some rows clamped to -10; the same array without rows."""
    if not len(rows):
        return masks
    kept = masks.copy()
    kept[rows] = np.minimum(kept[rows], SUPPRESSED)
    return kept


def shrunk_rows(masks: Floats, phrases: npt.ArrayLike, ratio: float) -> npt.NDArray[np.intp]:
    """Which masks keep less than a share of their cells beside the others.

    Each cell goes to the object of its phrase with the highest logit, of equal ones to the lower
    row.

    Args:
        masks: (M, h, w), logits.
        phrases: (M,), numbers of the phrases.
        ratio: A share from 0 to 1.

    Returns:
        Rows, phrase by phrase.
    """
    numbers = np.asarray(phrases)
    found: list[npt.NDArray[np.intp]] = [np.zeros(0, np.intp)]
    for phrase in np.unique(numbers):
        (rows,) = np.nonzero(numbers == phrase)
        if len(rows) < 2:
            continue
        group = masks[rows]
        owner = group.argmax(axis=0)
        above = group > 0
        before = np.maximum(above.sum(axis=(1, 2)), 1).astype(np.float32)
        mine = owner[None] == np.arange(len(rows))[:, None, None]
        after = (above & mine).sum(axis=(1, 2)).astype(np.float32)
        found.append(rows[after / before < np.float32(ratio)])
    return np.concatenate(found)


def without_overlaps(masks: Floats, scores: npt.NDArray[Any]) -> Floats:
    """Give each cell to the best object that covers it, as a frame's output is drawn.

    Args:
        masks: (M, h, w), logits of one phrase.
        scores: (M,); of equal ones the lower row is the better one.

    Returns:
        (M, h, w), where all cells of a mask but those that it won are clamped to -10.
    """
    if len(masks) < 2:
        return masks.copy()
    value = np.where(masks > 0, scores.reshape(-1, 1, 1), SUPPRESSED)
    owner = value.argmax(axis=0)
    mine = (owner[None] == np.arange(len(masks))[:, None, None]) & (value > 0)
    return np.where(mine, masks, np.minimum(masks, SUPPRESSED))


def scores_from_areas(masks: Masks) -> Floats:
    """Object scores for the memory encoder: 10 where a mask has any cell, -10 where it has none."""
    return np.where(cells_from_masks(masks).any, np.float32(10), np.float32(-10))
