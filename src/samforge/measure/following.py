"""How close clicks and tracks of a bundle are to those of fp32, asked the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from samforge.core.detections import Detections
from samforge.core.errors import ShapeError

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClickFidelity:
    """Masks that the same prompts give on both sides."""

    clicks: int
    """Prompts."""
    click_iou: float
    """Mean IoU of the masks."""
    worst_iou: float
    """The smallest."""
    score_shift: float
    """Mean absolute difference of the IoUs that the model expects."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackFidelity:
    """Tracks of the same clips on both sides.

    A temporal IoU is the sum of a pair's intersections over all frames through the sum of its
    unions (Yang et al., "Video Instance Segmentation", 2019). Tracks are paired so that the sum of
    temporal IoUs is largest; a track without a partner has 0.
    """

    tracks: int
    """Tracks of the reference."""
    measured_tracks: int
    """Tracks of what was measured."""
    track_iou: float
    """Smallest temporal IoU of any track, of either side."""
    mean_iou: float
    """Mean temporal IoU of the reference's tracks."""
    births_alike: int
    """Tracks of the reference whose partner is first seen on the same frame."""
    ends_alike: int
    """Tracks of the reference whose partner is last seen on the same frame."""


def compare_clicks(
    reference: Sequence[Detections], measured: Sequence[Detections]
) -> ClickFidelity:
    """Compare answers row by row.

    Args:
        reference: One for each image, a row for each prompt; at least one row in all.
        measured: Of the same prompts.

    Raises:
        ShapeError: They are not answers to the same prompts.
    """
    ious: list[float] = []
    shifts: list[float] = []
    for wanted, found in zip(reference, measured, strict=True):
        if len(wanted) != len(found) or wanted.size_hw != found.size_hw:
            raise ShapeError(
                f"Answers to the same prompts have equally many rows, got {len(wanted)} and "
                f"{len(found)}."
            )
        for one, other in zip(wanted.masks, found.masks, strict=True):
            union = int((one | other).sum())
            ious.append(float((one & other).sum() / union) if union else 1.0)
        shifts += np.abs(wanted.scores - found.scores).tolist()
    return ClickFidelity(
        clicks=len(ious),
        click_iou=float(np.mean(ious)),
        worst_iou=float(np.min(ious)),
        score_shift=float(np.mean(shifts)),
    )


def compare_tracks(
    reference: Sequence[Sequence[Detections]], measured: Sequence[Sequence[Detections]]
) -> TrackFidelity:
    """Compare runs over the same clips.

    Args:
        reference: Clip by clip, frame by frame, with ids.
        measured: Of the same frames.
    """
    best: list[float] = []
    extra: list[float] = []
    counts = [0, 0]
    births = ends = 0
    for wanted, found in zip(reference, measured, strict=True):
        sides = _Side(wanted), _Side(found)
        overlaps = _temporal_ious(*sides)
        pairs = _paired(overlaps)
        for side, one in enumerate(sides):
            counts[side] += len(one.ids)
        best += [overlaps[row, pairs[row]] if row in pairs else 0.0 for row in range(len(overlaps))]
        extra += [0.0] * (len(sides[1].ids) - len(pairs))
        births += sum(sides[0].first[a] == sides[1].first[b] for a, b in pairs.items())
        ends += sum(sides[0].last[a] == sides[1].last[b] for a, b in pairs.items())
    return TrackFidelity(
        tracks=counts[0],
        measured_tracks=counts[1],
        track_iou=float(min([*best, *extra], default=1.0)),
        mean_iou=float(np.mean(best)) if best else 1.0,
        births_alike=births,
        ends_alike=ends,
    )


class _Side:
    """The tracks of one run over a clip."""

    def __init__(self, frames: Sequence[Detections]) -> None:
        self.frames = frames
        seen = [_ids(frame) for frame in frames]
        self.ids = sorted({number for ids in seen for number in ids})
        self.rows = {number: row for row, number in enumerate(self.ids)}
        self.first = [next(t for t, ids in enumerate(seen) if one in ids) for one in self.ids]
        self.last = [max(t for t, ids in enumerate(seen) if one in ids) for one in self.ids]


def _ids(frame: Detections) -> list[int]:
    if frame.ids is None:
        raise ShapeError("Tracks are compared by their ids, and these detections have none.")
    return [int(number) for number in frame.ids]


def _temporal_ious(one: _Side, other: _Side) -> Matrix:
    shared = np.zeros((len(one.ids), len(other.ids)))
    areas = [np.zeros(len(side.ids)) for side in (one, other)]
    for frame, frame_of_other in zip(one.frames, other.frames, strict=True):
        flat: list[npt.NDArray[Any]] = []
        rows: list[list[int]] = []
        for side, found, area in zip((one, other), (frame, frame_of_other), areas, strict=True):
            own = [side.rows[number] for number in _ids(found)]
            pixels = found.masks.dense().reshape(len(found), -1).astype(np.float32)
            area[own] += pixels.sum(axis=1)
            flat.append(pixels)
            rows.append(own)
        shared[np.ix_(*rows)] += flat[0] @ flat[1].T
    unions = areas[0][:, None] + areas[1][None] - shared
    ious: Matrix = shared / np.maximum(unions, 1)
    return ious


def _paired(overlaps: Matrix) -> dict[int, int]:
    """Row -> column; pairs that share nothing are none."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(-overlaps)
    return {
        int(row): int(column)
        for row, column in zip(rows, columns, strict=True)
        if overlaps[row, column] > 0
    }
