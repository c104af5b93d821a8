"""Which masks text video remembers: decided at the size of the memory encoder, handed over small.

Meta enlarges all masks to 16s before its rules on them. Few masks meet another, and only those that
do can change there; so only they are enlarged, and only around where they are.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from samforge.core.reference import META
from samforge.runtime._resize import crop_above
from samforge.runtime.tracking.cells import Cells, boxes_meeting, cells_from_masks
from samforge.runtime.tracking.constants import Rules
from samforge.runtime.tracking.masks import clamped_rows, shrunk_rows
from samforge.runtime.tracking.resize import enlarged
from samforge.runtime.tracking.state import Floats

Rows = npt.NDArray[np.intp]


def remembered_masks(
    masks: Floats, phrases: npt.ArrayLike, rules: Rules, side: int, cells: Cells | None = None
) -> Floats:
    """Empty masks that keep too little beside others of their phrase.

    Where Meta is the reference this is decided at ``side``, else at the size of the masks. A mask
    that is emptied is clamped before it is enlarged, in Meta's code afterwards: both give shares of
    at most 0.00005.

    Args:
        masks: (M, 4s, 4s), logits.
        phrases: (M,), numbers of the phrases.
        rules: ``shrink_ratio``.
        side: Of the memory encoder's masks, 16s.
        cells: Of the masks, where they are known.

    Returns:
        (M, 4s, 4s).
    """
    if rules.reference != META:
        return clamped_rows(masks, shrunk_rows(masks, phrases, rules.shrink_ratio))
    numbers, scale = np.asarray(phrases), side // masks.shape[1]
    cells = cells_from_masks(masks) if cells is None else cells
    boxes, empty = _wider(cells), remembered_scores(masks, rules, side, cells) < 0
    shrunk = [np.zeros(0, np.intp)]
    for phrase in np.unique(numbers):
        group = np.flatnonzero(numbers == phrase)
        if len(group) > 1:  # beside another, nothing is too little as well
            shrunk.append(group[empty[group]])
        rows = _meeting(boxes, group)
        if len(rows):
            left, top = boxes[rows, :2].min(axis=0)
            right, bottom = boxes[rows, 2:].max(axis=0)
            window = masks[rows, top:bottom, left:right]
            large = enlarged(window, ((bottom - top) * scale, (right - left) * scale))
            shrunk.append(rows[shrunk_rows(large, np.zeros(len(rows)), rules.shrink_ratio)])
    return clamped_rows(masks, np.concatenate(shrunk))


def remembered_scores(masks: Floats, rules: Rules, side: int, cells: Cells | None = None) -> Floats:
    """Object scores for the memory encoder, 10 or -10: whether a mask has any cell at 16s.

    Args:
        masks: (M, 4s, 4s), logits.
        rules: Where Meta is not the reference, cells of 4s count.
        side: Of the memory encoder's masks, 16s.
        cells: Of the masks, where they are known.

    Returns:
        (M,).
    """
    cells = cells_from_masks(masks) if cells is None else cells
    scores = np.where(cells.any, np.float32(10), np.float32(-10))
    if rules.reference != META:
        return scores
    for row in np.flatnonzero(scores > 0):
        left, top, right, bottom = cells.boxes[row].tolist()
        above = masks[row, top:bottom, left:right] > 0
        # Between four cells of the mask all is mask; a smaller one may fall between what is drawn.
        if not (above[1:, 1:] & above[:-1, 1:] & above[1:, :-1] & above[:-1, :-1]).any():
            crop, _ = crop_above(masks[row], np.float32(0), (side, side))
            scores[row] = 10 if crop.any() else -10
    return scores


def _wider(cells: Cells) -> Rows:
    """(M, 4): the boxes of masks, a cell wider on each side; zeros for none."""
    height, width = cells.size_hw
    wider = (cells.boxes + np.array([-1, -1, 1, 1])).clip(0, [width, height, width, height])
    return np.where(cells.any[:, None], wider, 0)


def _meeting(boxes: Rows, rows: Rows) -> Rows:
    """Those of some rows whose box meets another's."""
    meets = boxes_meeting(boxes[rows], boxes[rows]) & ~np.eye(len(rows), dtype=np.bool_)
    found: Rows = rows[meets.any(axis=1)]
    return found
