"""How close clicks and tracks of a bundle are to those of fp32, asked the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from samforge.core.detections import Detections
from samforge.core.errors import ShapeError
from samforge.measure.tracks import TrackComparison, compare_tracks


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


def compare_clips(
    reference: Sequence[Sequence[Detections]], measured: Sequence[Sequence[Detections]]
) -> TrackFidelity:
    """Compare runs over the same clips.

    Args:
        reference: Clip by clip, frame by frame, with ids.
        measured: Of the same frames.

    Raises:
        ShapeError: The numbers of frames differ, or the sizes of a frame.
        SettingError: Detections have no ids.
    """
    return fidelity_of_tracks(
        compare_tracks(wanted, found) for wanted, found in zip(reference, measured, strict=True)
    )


def fidelity_of_tracks(clips: Iterable[TrackComparison]) -> TrackFidelity:
    """Sum up comparisons, one of each clip and way of asking."""
    counted = tuple(clips)
    best = [value for one in counted for value in one.temporal_iou.values()]
    extra = sum(len(one.extra) for one in counted)
    return TrackFidelity(
        tracks=sum(one.tracks for one in counted),
        measured_tracks=sum(len(one.pairs) for one in counted) + extra,
        track_iou=float(min([*best, *[0.0] * extra], default=1.0)),
        mean_iou=float(np.mean(best)) if best else 1.0,
        births_alike=sum(one.born_alike for one in counted),
        ends_alike=sum(one.ended_alike for one in counted),
    )
