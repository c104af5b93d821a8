"""Whether objects keep their identity: IDF1, and how often it switches.

IDF1: Ristani et al., "Performance Measures and a Data Set for Multi-Target, Multi-Camera Tracking"
(https://arxiv.org/abs/1609.01775). Switches: Bernardin and Stiefelhagen, "Evaluating Multiple
Object Tracking Performance: The CLEAR MOT Metrics" (https://doi.org/10.1155/2008/246309). Both
count as TrackEval does (``metrics/identity.py`` and ``metrics/clear.py``), to the last object.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from samforge.measure.overlaps import FrameOverlap, all_ids

THRESHOLD = 0.5
"""IoU from which two masks show the same object."""
_KEPT = 1000.0
"""Weight of a pair that goes on from the frame before, above any IoU."""
_EPSILON = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, kw_only=True, slots=True)
class Identities:
    """Counts over all frames; those of several clips add up."""

    true_positives: int
    """IDTP: masks of paired tracks that agree."""
    false_positives: int
    """IDFP: masks found that belong to no paired track, or do not agree."""
    false_negatives: int
    """IDFN: true masks likewise."""
    switches: int
    """IDSW: times a true object is matched with another id than it was the last time."""

    @property
    def idf1(self) -> float:
        """Share of masks with the right identity, 0 to 1; 1 where nothing is and nothing found."""
        everything = 2 * self.true_positives + self.false_positives + self.false_negatives
        return 2 * self.true_positives / everything if everything else 1.0


def identities_from_overlaps(
    frames: Sequence[FrameOverlap], *, threshold: float = THRESHOLD
) -> Identities:
    """Pair whole tracks so that most masks agree, and count; and count switches frame by frame.

    Args:
        frames: Of one clip, in order.
        threshold: IoU from which two masks agree.
    """
    rows = {number: row for row, number in enumerate(all_ids(one.true_ids for one in frames))}
    columns = {number: row for row, number in enumerate(all_ids(one.found_ids for one in frames))}
    agree = np.zeros((len(rows), len(columns)), np.int64)
    for frame in frames:
        for row, column in zip(*np.nonzero(frame.iou >= threshold), strict=True):
            agree[rows[int(frame.true_ids[row])], columns[int(frame.found_ids[column])]] += 1
    # Every agreement of a pair saves a false positive and a false negative, and a track may stay
    # alone: the least sum of both is the largest sum of agreements.
    hits = int(agree[linear_sum_assignment(agree, maximize=True)].sum())
    return Identities(
        true_positives=hits,
        false_positives=sum(len(one.found_ids) for one in frames) - hits,
        false_negatives=sum(len(one.true_ids) for one in frames) - hits,
        switches=_switches(frames, threshold),
    )


def summed_identities(clips: Iterable[Identities]) -> Identities:
    """Counts of several clips as one."""
    counted = tuple(clips)
    return Identities(
        true_positives=sum(one.true_positives for one in counted),
        false_positives=sum(one.false_positives for one in counted),
        false_negatives=sum(one.false_negatives for one in counted),
        switches=sum(one.switches for one in counted),
    )


def _switches(frames: Sequence[FrameOverlap], threshold: float) -> int:
    """Match each frame, pairs of the frame before first, and compare with the match before.

    An object that is lost and matched again after any number of frames counts once if its id is
    another. Frames with nothing true or nothing found are passed over, as in TrackEval.
    """
    last: dict[int, int] = {}  # the match before, however long ago
    before: dict[int, int] = {}  # the matches of the frame before
    switches = 0
    for frame in frames:
        if not len(frame.true_ids) or not len(frame.found_ids):
            continue
        wanted = np.array([before.get(number, -1) for number in frame.true_ids.tolist()])
        known = np.array([number in before for number in frame.true_ids.tolist()])
        goes_on = (frame.found_ids[None] == wanted[:, None]) & known[:, None]
        score = np.where(frame.iou < threshold - _EPSILON, 0.0, _KEPT * goes_on + frame.iou)
        before = {}
        for row, column in zip(*linear_sum_assignment(score, maximize=True), strict=True):
            if score[row, column] > _EPSILON:
                before[int(frame.true_ids[row])] = int(frame.found_ids[column])
        switches += sum(last.get(number, own) != own for number, own in before.items())
        last.update(before)
    return switches
