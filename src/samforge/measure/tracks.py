"""Two runs of one clip: do they follow the same objects, and for as long?

A pair of tracks is measured by its temporal IoU: the sum of the intersections over all frames, over
the sum of the unions. Source: mask AP of YouTube-VIS (https://arxiv.org/abs/1905.04804, section 4)
and SAM 3's video cgF1 (``sam3/eval/saco_veval_evaluators.py`` of facebookresearch/sam3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from samforge.measure.identities import Identities, identities_from_overlaps
from samforge.measure.overlaps import Frame, FrameOverlap, all_ids, frame_overlaps


@dataclass(frozen=True, kw_only=True, slots=True)
class TemporalIou:
    """Temporal IoU of every pair of tracks of one clip."""

    true_ids: tuple[int, ...]
    """N, ascending."""
    found_ids: tuple[int, ...]
    """M, ascending."""
    iou: npt.NDArray[np.float64]
    """(N, M), 0 to 1."""

    def pairs(self) -> dict[int, int]:
        """True ids to found ids so that the sum of temporal IoU is largest; none that is 0."""
        chosen = zip(*linear_sum_assignment(self.iou, maximize=True), strict=True)
        return {
            self.true_ids[row]: self.found_ids[column]
            for row, column in chosen
            if self.iou[row, column] > 0
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackComparison:
    """A run against the one that is held for right: fp32 and a bundle of it."""

    pairs: Mapping[int, int]
    """Ids of the reference to ids of the other run."""
    temporal_iou: Mapping[int, float]
    """By id of the reference; 0 for a track that the other run lacks."""
    lost: tuple[int, ...]
    """Ids of the reference without a partner."""
    extra: tuple[int, ...]
    """Ids of the other run without a partner."""
    born_alike: int
    """Pairs that are first to be seen on the same frame."""
    ended_alike: int
    """Pairs that are last to be seen on the same frame."""
    worst_frame: tuple[int, int, float] | None
    """Of all pairs: place of the frame, id of the reference, and the IoU there, the lowest; None
    without pairs."""
    identities: Identities
    """With the reference as the truth; ``switches`` are those of the other run."""

    @property
    def tracks(self) -> int:
        """Tracks of the reference."""
        return len(self.temporal_iou)

    @property
    def mean(self) -> float:
        """Mean temporal IoU over the reference's tracks, lost ones as 0; 1 where there is none."""
        return float(np.mean([*self.temporal_iou.values()])) if self.temporal_iou else 1.0

    @property
    def worst(self) -> float:
        """The lowest temporal IoU of a track of the reference; 1 where there is none."""
        return min(self.temporal_iou.values(), default=1.0)


def temporal_iou(frames: Sequence[FrameOverlap]) -> TemporalIou:
    """Sum intersections and unions of every pair of tracks over the frames of a clip."""
    rows = all_ids(one.true_ids for one in frames)
    columns = all_ids(one.found_ids for one in frames)
    shared = np.zeros((len(rows), len(columns)))
    true_areas, found_areas = np.zeros(len(rows)), np.zeros(len(columns))
    for frame in frames:
        here = np.searchsorted(rows, frame.true_ids)
        there = np.searchsorted(columns, frame.found_ids)
        shared[np.ix_(here, there)] += frame.shared
        true_areas[here] += frame.true_areas
        found_areas[there] += frame.found_areas
    union = true_areas[:, None] + found_areas[None] - shared
    return TemporalIou(true_ids=rows, found_ids=columns, iou=shared / np.maximum(union, 1))


def compare_tracks(reference: Sequence[Frame], found: Sequence[Frame]) -> TrackComparison:
    """Hold a run of a clip against another run of it.

    Args:
        reference: Frames of the run that is held for right, in order.
        found: The same frames of the other run. Its ids may be other ones: tracks are paired by
            their masks.

    Raises:
        ShapeError: The numbers of frames differ, or the sizes of a frame.
        SettingError: Detections have no ids, or the same id twice.
    """
    frames = frame_overlaps(reference, found)
    table = temporal_iou(frames)
    pairs = table.pairs()
    values = {
        number: float(table.iou[row, table.found_ids.index(pairs[number])])
        if number in pairs
        else 0.0
        for row, number in enumerate(table.true_ids)
    }
    ours = _spans([one.true_ids for one in frames])
    theirs = _spans([one.found_ids for one in frames])
    return TrackComparison(
        pairs=pairs,
        temporal_iou=values,
        lost=tuple(number for number in table.true_ids if number not in pairs),
        extra=tuple(number for number in table.found_ids if number not in pairs.values()),
        born_alike=sum(ours[one][0] == theirs[other][0] for one, other in pairs.items()),
        ended_alike=sum(ours[one][1] == theirs[other][1] for one, other in pairs.items()),
        worst_frame=_worst_frame(frames, pairs),
        identities=identities_from_overlaps(frames),
    )


def _spans(ids: Sequence[npt.NDArray[np.int64]]) -> dict[int, tuple[int, int]]:
    """First and last frame on which each id is to be seen."""
    spans: dict[int, tuple[int, int]] = {}
    for place, frame in enumerate(ids):
        for number in frame.tolist():
            spans[number] = (spans.get(number, (place, place))[0], place)
    return spans


def _worst_frame(
    frames: Sequence[FrameOverlap], pairs: Mapping[int, int]
) -> tuple[int, int, float] | None:
    """Where a pair agrees least, on the frames that show one of the two."""
    worst: tuple[int, int, float] | None = None
    for place, frame in enumerate(frames):
        here, there = frame.true_ids.tolist(), frame.found_ids.tolist()
        for one, other in pairs.items():
            if one not in here and other not in there:
                continue
            both = one in here and other in there
            value = float(frame.iou[here.index(one), there.index(other)]) if both else 0.0
            if worst is None or value < worst[2]:
                worst = (place, one, value)
    return worst
