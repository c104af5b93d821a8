"""Objects of known number and size for timings of the tracker: random weights find none."""

from __future__ import annotations

import numpy as np

from samforge.runtime.tracking.parts import FoundInFrame
from samforge.runtime.tracking.state import Floats

SCORE = 0.9
"""Of every detection: above all thresholds of the rules, so that objects are corrected too."""
SIZE_HW = (1080, 1920)
"""Height and width of a frame, pixels."""


def discs(count: int, side: int) -> Floats:
    """Discs on a grid that together cover two thirds of the picture.

    Args:
        count: Discs.
        side: Of the masks, cells.

    Returns:
        (count, side, side), logits, one a cell from the edge of each disc, at most 12.
    """
    across = int(np.ceil(count**0.5))
    cell = side / across
    row, column = np.mgrid[0:side, 0:side].astype(np.float32)
    places = [divmod(number, across) for number in range(count)]
    return np.stack(
        [
            (0.45 * cell - np.hypot(row - (y + 0.5) * cell, column - (x + 0.5) * cell)).clip(
                -12, 12
            )
            for y, x in places
        ]
    ).astype(np.float32)


def found_discs(masks: Floats, phrase: str) -> FoundInFrame:
    """What a detector would say that finds all of them."""
    count = len(masks)
    return FoundInFrame(
        masks=masks,
        scores=np.full(count, SCORE, np.float32),
        phrases=np.zeros(count, np.int64),
        boxes_xyxy=np.zeros((count, 4), np.float32),
        best_scores={phrase: SCORE},
    )
