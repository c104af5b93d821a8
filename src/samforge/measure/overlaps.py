"""Which masks of two runs share how many pixels, frame by frame: what track metrics count on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from samforge.core.detections import Detections
from samforge.core.errors import SettingError, ShapeError
from samforge.core.masks import Masks

Ids: TypeAlias = npt.NDArray[np.int64]
Counts: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FrameMasks:
    """What is to be seen on one frame."""

    ids: Ids
    """(N,), each once; none of their masks is empty."""
    masks: Masks | None
    """N masks; None where a dictionary without an entry does not tell the frame's size."""


Frame: TypeAlias = Detections | Mapping[int, npt.NDArray[np.bool_]] | FrameMasks
"""One frame of tracks: detections with ids, or a mask (H, W) by id. An id whose mask is empty is
not on the frame."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FrameOverlap:
    """Areas of one frame: N true (or reference) objects, M found."""

    true_ids: Ids
    """(N,)."""
    found_ids: Ids
    """(M,)."""
    true_areas: Counts
    """(N,), pixels, above 0."""
    found_areas: Counts
    """(M,), pixels, above 0."""
    shared: Counts
    """(N, M), pixels that both masks cover."""

    @property
    def union(self) -> Counts:
        """(N, M), pixels that either mask covers."""
        union: Counts = self.true_areas[:, None] + self.found_areas[None] - self.shared
        return union

    @property
    def iou(self) -> npt.NDArray[np.float64]:
        """(N, M), 0 to 1."""
        iou: npt.NDArray[np.float64] = self.shared / np.maximum(self.union, 1)
        return iou


def frame_masks(frame: Frame) -> FrameMasks:
    """Read one frame; ids with an empty mask are left out.

    Raises:
        SettingError: Detections have no ids, or the same id twice.
        ShapeError: Masks of a dictionary are not bool (H, W) of one size.
    """
    masks: Masks | None
    if isinstance(frame, FrameMasks):
        ids, masks = frame.ids, frame.masks
        if masks is None:
            return frame
    elif isinstance(frame, Detections):
        if frame.ids is None:
            raise SettingError("Tracks want detections with ids: those of a video session.")
        ids, masks = frame.ids, frame.masks
    elif not frame:
        return FrameMasks(ids=np.zeros(0, np.int64), masks=None)
    else:
        shapes = {mask.shape for mask in frame.values()}
        if len(shapes) != 1:
            raise ShapeError(f"Masks of a frame are of one size, got {sorted(shapes)}.")
        ids = np.fromiter(frame, np.int64, len(frame))
        masks = Masks.from_dense(np.stack(list(frame.values())))
    if len(np.unique(ids)) != len(ids):
        raise SettingError(f"An id is on a frame once, got {sorted(ids.tolist())}.")
    seen = masks.areas > 0
    return FrameMasks(ids=ids[seen], masks=masks[seen])


def frame_overlaps(true: Sequence[Frame], found: Sequence[Frame]) -> tuple[FrameOverlap, ...]:
    """Count the shared pixels of every pair of masks on every frame.

    Args:
        true: Frames of the truth, or of the run that is held for right.
        found: The same frames of the other run.

    Raises:
        ShapeError: The numbers of frames differ, or the sizes of a frame.
        SettingError: Detections have no ids, or the same id twice.
    """
    if len(true) != len(found):
        raise ShapeError(f"Both runs have the same frames, got {len(true)} and {len(found)}.")
    return tuple(
        _overlap(frame_masks(one), frame_masks(other))
        for one, other in zip(true, found, strict=True)
    )


def all_ids(ids: Iterable[Ids]) -> tuple[int, ...]:
    """Every id of a run, ascending."""
    return tuple(sorted({number for frame in ids for number in frame.tolist()}))


def _overlap(true: FrameMasks, found: FrameMasks) -> FrameOverlap:
    shared = np.zeros((len(true.ids), len(found.ids)), np.int64)
    if true.masks is not None and found.masks is not None:
        shared = true.masks.overlap(found.masks)
    return FrameOverlap(
        true_ids=true.ids,
        found_ids=found.ids,
        true_areas=_areas(true),
        found_areas=_areas(found),
        shared=shared,
    )


def _areas(frame: FrameMasks) -> Counts:
    return np.zeros(0, np.int64) if frame.masks is None else frame.masks.areas
