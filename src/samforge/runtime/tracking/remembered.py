"""Which masks text video remembers: decided at the size of the memory encoder, handed over small.

Meta enlarges all masks to 16s before its rules on them. Few masks meet another, and only those that
do can change there; so only they are enlarged, and only around where they are.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from samforge.core.reference import META
from samforge.runtime._resize import crop_above
from samforge.runtime.tracking.cells import boxes_meeting
from samforge.runtime.tracking.constants import Rules
from samforge.runtime.tracking.masks import shrunk_rows
from samforge.runtime.tracking.resize import enlarged
from samforge.runtime.tracking.stacks import MaskStack
from samforge.runtime.tracking.state import Floats

Rows = npt.NDArray[np.intp]


def remembered(
    masks: MaskStack, phrases: npt.ArrayLike, rules: Rules, side: int
) -> tuple[MaskStack, Floats]:
    """Empty masks that keep too little beside others of their phrase.

    Where Meta is the reference this is decided at ``side``, else at the size of the masks. A mask
    that is emptied is clamped before it is enlarged, in Meta's code afterwards: both give shares of
    at most 0.00005.

    Args:
        masks: M masks of 4s x 4s cells.
        phrases: (M,), numbers of the phrases.
        rules: ``shrink_ratio``.
        side: Of the memory encoder's masks, 16s.

    Returns:
        The masks, and what :func:`remembered_scores` says of them.
    """
    numbers, cells = np.asarray(phrases), masks.cells
    enlarges = rules.reference == META
    scale = side // cells.size_hw[0] if enlarges else 1
    boxes = cells.widened(1).boxes if enlarges else cells.boxes
    scores = remembered_scores(masks, rules, side)
    empty = scores < 0
    shrunk = [np.zeros(0, np.intp)]
    for phrase in np.unique(numbers):
        group = np.flatnonzero(numbers == phrase)
        if len(group) > 1:  # beside another, nothing is too little as well
            shrunk.append(group[empty[group]])
        rows = _meeting(boxes, group)
        if len(rows):
            left, top = boxes[rows, :2].min(axis=0).tolist()
            right, bottom = boxes[rows, 2:].max(axis=0).tolist()
            window = masks.window(rows, (left, top, right, bottom))
            if enlarges:
                window = enlarged(window, ((bottom - top) * scale, (right - left) * scale))
            shrunk.append(rows[shrunk_rows(window, np.zeros(len(rows)), rules.shrink_ratio)])
    emptied = np.unique(np.concatenate(shrunk))
    scores[emptied] = -10
    return masks.clamped(emptied), scores


def remembered_scores(masks: MaskStack, rules: Rules, side: int) -> Floats:
    """Object scores for the memory encoder, 10 or -10: whether a mask has any cell at 16s.

    Args:
        masks: M masks of 4s x 4s cells.
        rules: Where Meta is not the reference, cells of 4s count.
        side: Of the memory encoder's masks, 16s.

    Returns:
        (M,).
    """
    cells = masks.cells
    scores = np.where(cells.any, np.float32(10), np.float32(-10))
    if rules.reference != META:
        return scores
    # Between four cells of the mask all is mask; a smaller one may fall between what is drawn.
    for row in np.flatnonzero(cells.any & ~cells.has_square).tolist():
        logits = masks.window([row], (0, 0, *cells.size_hw[::-1]))[0]
        crop, _ = crop_above(logits, np.float32(0), (side, side))
        scores[row] = 10 if crop.any() else -10
    return scores


def _meeting(boxes: Rows, rows: Rows) -> Rows:
    """Those of some rows whose box meets another's."""
    meets = boxes_meeting(boxes[rows], boxes[rows]) & ~np.eye(len(rows), dtype=np.bool_)
    found: Rows = rows[meets.any(axis=1)]
    return found
