"""What a frame brings, what is known from frame to frame, and what is decided: all frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from samforge.core.errors import FidelityError, SettingError, ShapeError
from samforge.runtime.tracking.cells import Cells, Masks, cells_from_masks

Floats: TypeAlias = npt.NDArray[np.float32]
Source: TypeAlias = Literal["track", "detection"]
Reason: TypeAlias = Literal["unmatched", "duplicate"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Detected:
    """What the detector says of one frame: N detections of all phrases.

    Raises:
        ShapeError: The arrays do not belong together.
        FidelityError: A score is NaN.
    """

    cells: Cells
    """N masks: where they are. Nothing else of them decides."""
    scores: Floats
    """(N,), probabilities: those of the detection times the presence of its phrase."""
    phrases: npt.NDArray[np.int64]
    """(N,), numbers of the phrases; only detections and tracks of one phrase meet."""

    def __post_init__(self) -> None:
        count = len(self.cells)
        if self.scores.shape != (count,) or self.phrases.shape != (count,):
            raise ShapeError(
                "Detections want masks (N, h, w), scores (N,) and phrases (N,), got "
                f"{count} masks, {self.scores.shape} and {self.phrases.shape}."
            )
        refuse_nan_scores(self.scores, "detection")

    @classmethod
    def from_masks(
        cls, *, masks: Masks, scores: Floats, phrases: npt.NDArray[np.int64]
    ) -> Detected:
        """The same of masks (N, h, w): logits, or booleans.

        A cell belongs to a mask where it is above 0.

        Raises:
            ShapeError: The arrays do not belong together.
            FidelityError: A score is NaN.
        """
        return cls(cells=_cells("Detections", masks), scores=scores, phrases=phrases)

    def __len__(self) -> int:
        return len(self.scores)

    def taken(self, rows: npt.NDArray[np.intp]) -> Detected:
        """The detections of some rows, in the order of ``rows``."""
        if np.array_equal(rows, np.arange(len(self))):
            return self
        return Detected(
            cells=self.cells.taken(rows), scores=self.scores[rows], phrases=self.phrases[rows]
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Tracked:
    """What the tracker says of one frame: a row for each living track, in the order of its id.

    Raises:
        ShapeError: The arrays do not belong together.
        FidelityError: A score is NaN.
    """

    cells: Cells
    """M masks with holes filled: where they are."""
    scores: Floats
    """(M,), logits: above 0 the object is there."""

    def __post_init__(self) -> None:
        if self.scores.shape != (len(self.cells),):
            raise ShapeError(
                "Tracked masks want (M, h, w) and scores (M,), got "
                f"{len(self.cells)} masks and {self.scores.shape}."
            )
        refuse_nan_scores(self.scores, "tracker")

    @classmethod
    def from_masks(cls, *, masks: Masks, scores: Floats) -> Tracked:
        """The same of masks (M, h, w): logits, or booleans.

        Raises:
            ShapeError: The arrays do not belong together.
            FidelityError: A score is NaN.
        """
        return cls(cells=_cells("Tracked masks", masks), scores=scores)

    def __len__(self) -> int:
        return len(self.scores)


def _cells(whose: str, masks: Masks) -> Cells:
    if masks.ndim != 3:
        raise ShapeError(f"{whose} want masks (N, h, w), got {masks.shape}.")
    return cells_from_masks(masks)


def refuse_nan_scores(scores: Floats, whose: str) -> None:
    """Stop at NaN, which no comparison admits and which would pass for "nothing found"."""
    if np.isnan(scores).any():
        raise FidelityError(
            f"{whose} scores hold NaN: this artifact does not compute what the model does. Run "
            "samforge compare on the bundle, or build it with --precision fp32."
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Track:
    """One object and its counters after a frame."""

    id: int
    """Given once and never again."""
    phrase: int
    """Number of the phrase that found it."""
    first_frame: int
    """Frame of its birth."""
    last_seen: int
    """Last frame on which its mask was not empty."""
    score: float
    """Score of the detection it was born from."""
    keep_alive: int
    """Rises with matched frames and falls with unmatched ones."""
    unmatched_frames: int = 0
    """Frames on which its mask was not empty and no detection reached it."""
    duplicate_frames: tuple[tuple[int, int], ...] = ()
    """(id of an earlier track, frames of hot start on which one detection matched both)."""
    last_occluded: int | None = None
    """Last frame on which its mask was empty or suppressed; -1 if none was, None before the
    first frame that the tracker followed it to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingState:
    """All that the rules know after a frame: its size depends on living tracks only.

    Raises:
        SettingError: The ids are not in order, or one is still to be given.
    """

    tracks: tuple[Track, ...] = ()
    """The living ones, by ascending id: the order of the tracker's rows."""
    next_id: int = 0
    """The id of the next object."""
    frame: int | None = None
    """The last frame that was decided."""

    def __post_init__(self) -> None:
        ids = [track.id for track in self.tracks]
        if ids != sorted(set(ids)) or (ids and ids[-1] >= self.next_id):
            raise SettingError(
                f"Tracks want ascending ids below {self.next_id}, got {ids[:20]}. Continue from a "
                "state that the rules gave."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Birth:
    """A detection that became an object."""

    id: int
    """The new track."""
    detection: int
    """Row of the detection."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Removal:
    """A track that ended in its hot start."""

    id: int
    """The track, whose id is not given again."""
    reason: Reason
    """What was counted."""
    duplicate_of: int | None = None
    """The earlier track, where that is the reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """Where the mask of an object comes from on a frame."""

    id: int
    """The object."""
    source: Source
    """Whose masks."""
    row: int
    """Row of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decisions:
    """What the rules say of one frame. Detections are named by their rows as they came."""

    frame: int
    """Number of the frame."""
    kept: tuple[int, ...]
    """Detections above the score that no better one covers, ascending."""
    born: tuple[Birth, ...]
    """New objects, by ascending id."""
    dropped: tuple[int, ...]
    """Detections that would have been born, had there been room: the worst ones."""
    matched: Mapping[int, tuple[int, ...]]
    """Detection -> ids of the tracks it overlaps, for each kept one if there were tracks."""
    unmatched: tuple[int, ...]
    """Ids with a mask that no detection reaches."""
    empty: tuple[int, ...]
    """Ids whose mask is empty."""
    removed: tuple[Removal, ...]
    """Tracks that ended, by ascending id."""
    hidden: tuple[int, ...]
    """Ids that live and are left out of the output, unmatched for too long."""
    candidates: Mapping[int, int]
    """Id -> detection that is sure enough to recondition it."""
    reconditioned: Mapping[int, int]
    """Id -> detection, where it happens."""
    conditioning: tuple[int, ...]
    """Ids for which the frame becomes a conditioning frame: births are not among them."""
    suppressed: tuple[int, ...]
    """Ids whose mask gives way to that of a track that was occluded less recently."""
    shown: tuple[Shown, ...]
    """What the frame shows before ids that are removed later are taken out: see ``output.py``."""

    @property
    def removed_ids(self) -> frozenset[int]:
        """Ids of ``removed``."""
        return frozenset(removal.id for removal in self.removed)
