"""J and F of video object segmentation: how well regions and their boundaries are followed.

Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation"
(https://doi.org/10.1109/CVPR.2016.85, DAVIS 2016), for several objects as in DAVIS 2017
(https://arxiv.org/abs/1704.00675); boundaries as in ``db_eval_boundary`` of
davisvideochallenge/davis2017-evaluation, which TrackEval copied.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt
from scipy.optimize import linear_sum_assignment

from samforge.core.errors import ShapeError
from samforge.measure.overlaps import (
    Frame,
    FrameMasks,
    FrameOverlap,
    all_ids,
    frame_masks,
    frame_overlaps,
)

Mask = npt.NDArray[np.bool_]

TOLERANCE = 0.008
"""Boundaries agree within this share of the picture's diagonal, rounded up to pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectScore:
    """How well one true object was followed."""

    id: int
    """Of the true object."""
    found: int | None
    """The track that is held against it; None where there is none."""
    j: float
    """Mean region similarity over the frames, 0 to 1; 1 on a frame where it is neither there nor
    found."""
    f: float
    """Mean boundary F over the frames, likewise."""
    j_present: float | None
    """Mean region similarity over the frames where it is there; None where there is no such one."""

    @property
    def j_and_f(self) -> float:
        """Mean of both."""
        return (self.j + self.f) / 2


def region_similarity(found: Mask, true: Mask) -> float:
    """J: overlap over union of two masks (H, W); 1 where both are empty."""
    _check(found, true)
    union = np.count_nonzero(found | true)
    return np.count_nonzero(found & true) / union if union else 1.0


def boundary_f(found: Mask, true: Mask, *, tolerance: int | None = None) -> float:
    """F: harmonic mean of the shares of both boundaries that lie near the other one.

    Args:
        found: (H, W).
        true: (H, W).
        tolerance: How near, in pixels; None for :data:`TOLERANCE` of the diagonal.

    Returns:
        0 to 1; 1 where both are empty, 0 where one is.
    """
    _check(found, true)
    near = math.ceil(TOLERANCE * math.hypot(*true.shape)) if tolerance is None else tolerance
    ours, theirs = boundary(found), boundary(true)
    if not ours.any() or not theirs.any():
        return float(ours.any() == theirs.any())
    window = _window(ours | theirs)
    ours, theirs = ours[window], theirs[window]
    precision = float(np.mean(distance_transform_edt(~theirs)[ours] <= near))
    recall = float(np.mean(distance_transform_edt(~ours)[theirs] <= near))
    total = precision + recall
    return 2 * precision * recall / total if total else 0.0


def boundary(mask: Mask) -> Mask:
    """Pixels (H, W) that differ from the next one to the right, below, or below right.

    One pixel wide, half a pixel up and left of the true edge: ``seg2bmap`` of D. Martin, 2003.
    """
    edge = np.zeros_like(mask)
    edge[:, :-1] |= mask[:, :-1] ^ mask[:, 1:]
    edge[:-1] |= mask[:-1] ^ mask[1:]
    edge[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return edge


def object_scores(
    true: Sequence[Frame],
    found: Sequence[Frame],
    *,
    pairs: Mapping[int, int] | None = None,
    skip_ends: bool = False,
) -> tuple[ObjectScore, ...]:
    """J and F of every true object of a clip.

    Args:
        true: Its frames, in order.
        found: The same frames of the run.
        pairs: True ids to found ids, where it is known which track stands for which object (the
            semi-supervised task). None pairs them so that the sum of J is largest, as the
            unsupervised one does; a track that belongs to no true object costs nothing there.
        skip_ends: Leave out the first and the last frame, as the semi-supervised task does: the
            first shows the object.

    Returns:
        By ascending id of the true objects, those among them that an end alone shows.

    Raises:
        ShapeError: The runs have other frames, or nothing is left of them.
        SettingError: Detections have no ids, or the same id twice.
    """
    rows = all_ids(frame_masks(one).ids for one in true)
    if skip_ends:
        true, found = true[1:-1], found[1:-1]
    if not true:
        raise ShapeError("J and F need at least one frame.")
    overlaps = frame_overlaps(true, found)
    columns = all_ids(one.found_ids for one in overlaps)
    similarity = _similarities(overlaps, rows, columns)  # [T, N, M + 1]
    if pairs is None:
        pairs = _paired(similarity, rows, columns)
    partners = [pairs.get(number) for number in rows]
    known = {number: place for place, number in enumerate(columns)}
    places = [len(columns) if one is None else known.get(one, len(columns)) for one in partners]
    contours = _contours(true, found, dict(zip(rows, partners, strict=True)))
    scores = []
    for row, number in enumerate(rows):
        own = similarity[:, row, places[row]]
        there = np.array([number in one.true_ids for one in overlaps])
        scores.append(
            ObjectScore(
                id=number,
                found=partners[row],
                j=float(own.mean()),
                f=float(np.mean(contours[number])),
                j_present=float(own[there].mean()) if there.any() else None,
            )
        )
    return tuple(scores)


def _similarities(
    overlaps: Sequence[FrameOverlap], rows: Sequence[int], columns: Sequence[int]
) -> npt.NDArray[np.float64]:
    """J of every frame and pair, (T, N, M + 1); the last column is of a track that is empty."""
    similarity = np.ones((len(overlaps), len(rows), len(columns) + 1))
    for values, frame in zip(similarity, overlaps, strict=True):
        here = np.searchsorted(rows, frame.true_ids)
        there = np.searchsorted(columns, frame.found_ids)
        values[here] = 0
        values[:, there] = 0
        values[np.ix_(here, there)] = frame.iou
    return similarity


def _paired(
    similarity: npt.NDArray[np.float64], rows: Sequence[int], columns: Sequence[int]
) -> dict[int, int]:
    """Pairs with the largest sum of mean J; with fewer tracks than objects, the rest stay alone."""
    mean = similarity.mean(0)
    alone = max(0, len(rows) - len(columns))
    value = np.concatenate([mean[:, :-1], np.repeat(mean[:, -1:], alone, 1)], 1)
    chosen = zip(*linear_sum_assignment(value, maximize=True), strict=True)
    return {rows[row]: columns[column] for row, column in chosen if column < len(columns)}


def _contours(
    true: Sequence[Frame], found: Sequence[Frame], partners: Mapping[int, int | None]
) -> dict[int, list[float]]:
    """F of every object on every frame."""
    contours: dict[int, list[float]] = {number: [] for number in partners}
    for one, other in zip(map(frame_masks, true), map(frame_masks, found), strict=True):
        for number, partner in partners.items():
            wanted, seen = _mask(one, number), _mask(other, partner)
            if wanted is None or seen is None:
                contours[number].append(float(wanted is None and seen is None))
            else:
                contours[number].append(boundary_f(seen, wanted))
    return contours


def _mask(frame: FrameMasks, number: int | None) -> Mask | None:
    places = np.flatnonzero(frame.ids == number)  # of None: none
    return frame.masks[int(places[0])] if len(places) and frame.masks is not None else None


def _check(found: Mask, true: Mask) -> None:
    if found.shape != true.shape or found.ndim != 2:
        raise ShapeError(f"J and F want two masks (H, W), got {found.shape} and {true.shape}.")
    if found.dtype != np.bool_ or true.dtype != np.bool_:
        raise ShapeError(f"J and F want bool, got {found.dtype} and {true.dtype}. Give mask > 0.")


def _window(mask: Mask) -> tuple[slice, slice]:
    """Rows and columns around a mask that is not empty."""
    down, across = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return slice(down[0], down[-1] + 1), slice(across[0], across[-1] + 1)
