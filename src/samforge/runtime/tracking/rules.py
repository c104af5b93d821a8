"""The rules of text video: one frame of detections and tracked masks in, decisions out.

Pure functions over frozen values, without a model. :func:`decide` is the whole of a frame and reads
top to bottom; each rule stands alone below it or in ``association.py`` and ``hot_start.py``.
Source of the behaviour: ``run_tracker_update_planning_phase`` of Meta's
sam3/model/sam3_video_base.py, and of transformers' ``Sam3VideoModel``; docs/tracking-rules.md says
what was compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from samforge.core.errors import SettingError
from samforge.runtime.tracking.association import associate, kept_detections, mask_ious
from samforge.runtime.tracking.constants import META, Rules
from samforge.runtime.tracking.hot_start import hot_start
from samforge.runtime.tracking.state import (
    Birth,
    Decisions,
    Detected,
    Floats,
    Shown,
    Track,
    Tracked,
    TrackingState,
)

NEVER = -1
"""``last_occluded`` of a track whose mask was never empty or suppressed."""
_ALWAYS = np.iinfo(np.int64).max


@dataclass(frozen=True, kw_only=True, slots=True)
class Births:
    """Which detections become objects."""

    born: tuple[Birth, ...]
    """By ascending id."""
    dropped: tuple[int, ...]
    """Rows of detections that there was no room for, ascending."""


def decide(
    state: TrackingState,
    frame: int,
    found: Detected,
    tracked: Tracked,
    rules: Rules = META,
    *,
    reverse: bool = False,
) -> tuple[Decisions, TrackingState]:
    """Decide a frame.

    Ids are given in the order of the detections' rows, or best score first where there is no room
    for all. They are never given twice.

    Args:
        state: What is known from the frames before.
        frame: Number of the frame in the video; numbers may be left out, but not come back.
        found: All detections of the frame, in any order.
        tracked: The tracker's masks, a row for each track of ``state``, holes filled.
        rules: ``META``, ``TRANSFORMERS``, or a variation of either.
        reverse: Whether the video runs backwards.

    Returns:
        The decisions, and the state for the next frame.

    Raises:
        SettingError: The frame does not come after the last one, or is negative.
        ShapeError: There is not one tracked mask for each track, or masks differ in size.
    """
    check_frame(state, frame, reverse=reverse)
    kept = kept_detections(found, rules)
    candidates = found.taken(np.array(kept, np.intp))
    association = associate(candidates, tracked, state.tracks, rules)
    births = births_from_new(
        association.new, candidates.scores, len(state.tracks), state.next_id, rules
    )
    counted = hot_start(state.tracks, association, frame, rules, reverse=reverse)
    removed = {removal.id for removal in counted.removed}
    reconditioned = reconditioned_tracks(
        association.candidates, state.tracks, tracked.scores, frame, rules
    )
    suppressed, tracks = suppress_recently_occluded(
        counted.tracks, tracked, frame, removed, rules, reverse=reverse
    )
    newborn = tuple(_newborn(birth, candidates, frame, rules) for birth in births.born)
    decisions = Decisions(
        frame=frame,
        kept=kept,
        born=tuple(replace(birth, detection=kept[birth.detection]) for birth in births.born),
        dropped=tuple(kept[row] for row in births.dropped),
        matched={kept[row]: ids for row, ids in association.matched.items()},
        unmatched=association.unmatched,
        empty=association.empty,
        removed=counted.removed,
        hidden=counted.hidden,
        candidates=_renumbered(association.candidates, kept),
        reconditioned=_renumbered(reconditioned, kept),
        conditioning=conditioning_tracks(reconditioned, state.tracks, rules),
        suppressed=suppressed,
        shown=(),
    )
    decisions = replace(decisions, shown=shown_masks(decisions, state.tracks, rules))
    living = tuple(track for track in (*tracks, *newborn) if track.id not in removed)
    next_id = state.next_id + len(newborn)
    return decisions, TrackingState(tracks=living, next_id=next_id, frame=frame)


def check_frame(state: TrackingState, frame: int, *, reverse: bool) -> None:
    """Make sure that a frame follows the last one.

    Raises:
        SettingError: It does not, or is negative.
    """
    if frame < 0:
        raise SettingError(f"frame is {frame}. Give 0 or more.")
    if state.frame is None:
        return
    if (frame >= state.frame) if reverse else (frame <= state.frame):
        side = "before" if reverse else "after"
        raise SettingError(
            f"Frame {frame} was given after frame {state.frame}. Give one {side} it, or start from "
            "an empty state."
        )


def _renumbered(found: Mapping[int, int], kept: Sequence[int]) -> dict[int, int]:
    """From rows of the kept detections to rows of all."""
    return {number: kept[row] for number, row in found.items()}


def _newborn(birth: Birth, found: Detected, frame: int, rules: Rules) -> Track:
    return Track(
        id=birth.id,
        phrase=int(found.phrases[birth.detection]),
        first_frame=frame,
        last_seen=frame,
        score=float(found.scores[birth.detection]),
        keep_alive=rules.keep_alive_start,
    )


def births_from_new(
    new: Sequence[int], scores: Floats, living: int, next_id: int, rules: Rules
) -> Births:
    """Give ids to new detections, to the best of them where there is no room for all.

    Args:
        new: Rows of new detections, ascending.
        scores: (N,), of all detections.
        living: Tracks before this frame; those that it removes still take room.
        next_id: The first id to give.
        rules: ``most_tracks`` says how much room there is.
    """
    room = max(0, rules.most_tracks - living)
    taken = list(new)
    if len(taken) > room:
        # Of equal scores the lower row is kept.
        taken = sorted(taken, key=lambda row: (-scores[row], row))[:room]
    born = tuple(Birth(id=next_id + place, detection=row) for place, row in enumerate(taken))
    return Births(born=born, dropped=tuple(row for row in new if row not in taken))


def reconditioned_tracks(
    candidates: Mapping[int, int],
    tracks: Sequence[Track],
    scores: Floats,
    frame: int,
    rules: Rules,
) -> dict[int, int]:
    """Tracks that a sure detection corrects on this frame, with the detection's row.

    Args:
        candidates: Id -> row of a sure detection.
        tracks: The tracks of ``scores``.
        scores: (M,), the tracker's object scores, logits.
        frame: Number of the frame, counted from the start of the video.
        rules: How often, and from which score on.
    """
    if rules.recondition_every == 0 or frame % rules.recondition_every:
        return {}
    sure = scores > np.float32(rules.recondition_logit)
    ids = {track.id for track, is_sure in zip(tracks, sure, strict=True) if is_sure}
    return {number: row for number, row in candidates.items() if number in ids}


def conditioning_tracks(
    reconditioned: Mapping[int, int], tracks: Sequence[Track], rules: Rules
) -> tuple[int, ...]:
    """Tracks for which the frame becomes a conditioning frame.

    Meta keeps the objects that were born on one frame in one memory: a frame that conditions one
    of them conditions all.
    """
    if not rules.conditions_siblings:
        return tuple(sorted(reconditioned))
    births = {track.first_frame for track in tracks if track.id in reconditioned}
    return tuple(track.id for track in tracks if track.first_frame in births)


def suppress_recently_occluded(
    tracks: Sequence[Track],
    tracked: Tracked,
    frame: int,
    removed: AbstractSet[int],
    rules: Rules,
    *,
    reverse: bool = False,
) -> tuple[tuple[int, ...], tuple[Track, ...]]:
    """Of two tracks of a phrase on one place, let the one that was occluded last give way.

    It gives way only if the other was occluded before too: a track that never was suppresses none.

    Args:
        tracks: The living tracks, by ascending id.
        tracked: Their masks.
        frame: Number of the frame.
        removed: Ids that this frame removes.
        rules: The overlap.
        reverse: Whether the video runs backwards.

    Returns:
        Suppressed ids, ascending, and the tracks with what is now their last occlusion.
    """
    if rules.occlusion_iou <= 0:
        return (), tuple(replace(track, last_occluded=None) for track in tracks)
    occlusions = np.array([_last_occlusion(track, removed) for track in tracks], np.int64)
    phrases = np.array([track.phrase for track in tracks], np.int64)
    yields = _yielding(
        mask_ious(tracked.cells, tracked.cells), occlusions, phrases, rules, reverse=reverse
    )
    occluded = yields | ~tracked.cells.any
    after = np.where(occluded, frame, occlusions)
    suppressed = tuple(track.id for track, is_so in zip(tracks, yields, strict=True) if is_so)
    changed = zip(tracks, after.tolist(), strict=True)
    return suppressed, tuple(
        track if track.last_occluded == last else replace(track, last_occluded=last)
        for track, last in changed
    )


def _last_occlusion(track: Track, removed: AbstractSet[int]) -> int:
    if track.last_occluded is not None:
        return track.last_occluded
    # A removed track counts as occluded for ever only on the first frame it is followed to: later
    # its last occlusion is known, and is taken. So it is in both references.
    return int(_ALWAYS) if track.id in removed else NEVER


def _yielding(
    ious: Floats,
    occlusions: npt.NDArray[np.int64],
    phrases: npt.NDArray[np.int64],
    rules: Rules,
    *,
    reverse: bool,
) -> npt.NDArray[np.bool_]:
    """(M,): which rows give way to any other row."""
    meets = (ious >= np.float32(rules.occlusion_iou)) & (phrases[:, None] == phrases[None])
    mine, others = occlusions[:, None], occlusions[None]
    later = (mine < others) if reverse else (mine > others)
    yields: npt.NDArray[np.bool_] = (meets & later & (others > NEVER)).any(axis=1)
    return yields


def shown_masks(decisions: Decisions, tracks: Sequence[Track], rules: Rules) -> tuple[Shown, ...]:
    """Where the mask of each object of a frame comes from, by ascending id.

    Removed tracks are among them at Meta's, and leave with the release of the frame. transformers
    names the tracker's rows after additions and removals, so that behind a removed track each mask
    goes to the next id: ``shifts_rows``.
    """
    ids = [track.id for track in tracks]
    if rules.shifts_rows:
        removed = decisions.removed_ids
        born = [birth.id for birth in decisions.born]
        ids = [number for number in (*ids, *born) if number not in removed][: len(ids)]
    shown = {number: Shown(id=number, source="track", row=row) for row, number in enumerate(ids)}
    over = {birth.id: birth.detection for birth in decisions.born}
    if rules.shows_reconditioning:
        over |= decisions.reconditioned
    for number, row in over.items():
        shown[number] = Shown(id=number, source="detection", row=row)
    return tuple(shown[number] for number in sorted(shown))
