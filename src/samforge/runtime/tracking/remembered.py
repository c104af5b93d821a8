"""Which masks text video remembers: decided at the size of the memory encoder, handed over small.

Meta enlarges all masks to 16s before its rules on them. Few masks meet another, and only those that
do can change there; so only they are enlarged, and only around where they are.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from samforge.core.reference import META
from samforge.runtime._resize import crop_above
from samforge.runtime.tracking.constants import Rules
from samforge.runtime.tracking.masks import clamped_rows, scores_from_areas, shrunk_rows
from samforge.runtime.tracking.resize import enlarged
from samforge.runtime.tracking.state import Floats

Rows = npt.NDArray[np.intp]


def remembered_masks(masks: Floats, phrases: npt.ArrayLike, rules: Rules, side: int) -> Floats:
    """Empty masks that keep too little beside others of their phrase.

    Where Meta is the reference this is decided at ``side``, else at the size of the masks. A mask
    that is emptied is clamped before it is enlarged, in Meta's code afterwards: both give shares of
    at most 0.00005.

    Args:
        masks: (M, 4s, 4s), logits.
        phrases: (M,), numbers of the phrases.
        rules: ``shrink_ratio``.
        side: Of the memory encoder's masks, 16s.

    Returns:
        (M, 4s, 4s), a new array.
    """
    if rules.reference != META:
        return clamped_rows(masks, shrunk_rows(masks, phrases, rules.shrink_ratio))
    numbers, scale = np.asarray(phrases), side // masks.shape[1]
    boxes, empty = _boxes(masks), remembered_scores(masks, rules, side) < 0
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


def remembered_scores(masks: Floats, rules: Rules, side: int) -> Floats:
    """Object scores for the memory encoder, 10 or -10: whether a mask has any cell at 16s.

    Args:
        masks: (M, 4s, 4s), logits.
        rules: Where Meta is not the reference, cells of 4s count.
        side: Of the memory encoder's masks, 16s.

    Returns:
        (M,).
    """
    scores = scores_from_areas(masks)
    if rules.reference != META:
        return scores
    for row in np.flatnonzero(scores > 0):
        above = masks[row] > 0
        # Between four cells of the mask all is mask; a smaller one may fall between what is drawn.
        if not (above[1:, 1:] & above[:-1, 1:] & above[1:, :-1] & above[:-1, :-1]).any():
            crop, _ = crop_above(masks[row], np.float32(0), (side, side))
            scores[row] = 10 if crop.any() else -10
    return scores


def _boxes(masks: Floats) -> Rows:
    """(M, 4): left, top, right, bottom of cells, one wider on each side; zeros for none."""
    height, width = masks.shape[1:]
    boxes = np.zeros((len(masks), 4), np.intp)
    for box, above in zip(boxes, masks > 0, strict=True):
        rows, columns = np.flatnonzero(above.any(axis=1)), np.flatnonzero(above.any(axis=0))
        if len(rows):
            box[:] = columns[0] - 1, rows[0] - 1, columns[-1] + 2, rows[-1] + 2
    return boxes.clip(0, [width, height, width, height]).astype(np.intp)


def _meeting(boxes: Rows, rows: Rows) -> Rows:
    """Those of some rows whose box meets another's."""
    own = boxes[rows]
    meets = np.logical_and.reduce(own[:, None, :2] < own[None, :, 2:], axis=2)
    meets &= meets.T & ~np.eye(len(rows), dtype=np.bool_)
    found: Rows = rows[np.logical_or.reduce(meets, axis=1)]
    return found
