"""Frames between two on which phrases are looked for."""

from __future__ import annotations

from dataclasses import replace

from samforge.runtime.tracking.constants import META, Rules
from samforge.runtime.tracking.rules import check_frame, suppress_recently_occluded
from samforge.runtime.tracking.state import Decisions, Shown, Tracked, TrackingState


def undetected(
    state: TrackingState,
    frame: int,
    tracked: Tracked,
    rules: Rules = META,
    *,
    reverse: bool = False,
) -> tuple[Decisions, TrackingState]:
    """Decide a frame on which nothing was looked for: no counter moves but that of occlusions.

    Args:
        state: What is known from the frames before.
        frame: Number of the frame in the video.
        tracked: The tracker's masks, a row for each track of ``state``.
        rules: The overlap of suppression.
        reverse: Whether the video runs backwards.

    Raises:
        SettingError: The frame does not come after the last one, or is negative.
    """
    check_frame(state, frame, reverse=reverse)
    suppressed, tracks = suppress_recently_occluded(
        state.tracks, tracked, frame, frozenset(), rules, reverse=reverse
    )
    there = tracked.cells.any.tolist()
    seen = tuple(
        replace(track, last_seen=frame) if is_there else track
        for track, is_there in zip(tracks, there, strict=True)
    )
    decisions = Decisions(
        frame=frame,
        kept=(),
        born=(),
        dropped=(),
        matched={},
        unmatched=(),
        empty=tuple(
            track.id for track, is_there in zip(tracks, there, strict=True) if not is_there
        ),
        removed=(),
        hidden=(),
        candidates={},
        reconditioned={},
        conditioning=(),
        suppressed=suppressed,
        shown=tuple(
            Shown(id=track.id, source="track", row=row) for row, track in enumerate(tracks)
        ),
    )
    return decisions, replace(state, tracks=seen, frame=frame)
