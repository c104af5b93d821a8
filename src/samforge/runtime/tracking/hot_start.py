"""Counters of tracks, and what they lead to: removal in the hot start, hiding after it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from samforge.runtime.tracking.association import Association
from samforge.runtime.tracking.constants import Rules
from samforge.runtime.tracking.state import Removal, Track


@dataclass(frozen=True, kw_only=True, slots=True)
class HotStart:
    """What the counters say after a frame."""

    tracks: tuple[Track, ...]
    """All tracks with their new counters, the removed ones too."""
    removed: tuple[Removal, ...]
    """By ascending id."""
    hidden: tuple[int, ...]
    """Ids that live and are not shown."""


def in_hot_start(first_frame: int, frame: int, rules: Rules, *, reverse: bool = False) -> bool:
    """Whether an object born on ``first_frame`` may still be removed on ``frame``."""
    age = first_frame - frame if reverse else frame - first_frame
    return age < rules.hot_start_frames


def hot_start(
    tracks: Sequence[Track], found: Association, frame: int, rules: Rules, *, reverse: bool = False
) -> HotStart:
    """Count the frame for every track, and remove or hide those that were seldom confirmed.

    A track is removed in its hot start after enough unmatched frames, or after enough frames on
    which one detection matched it and a track that was first seen earlier. Of two first seen on
    one frame, the one of the lower id counts as the earlier one.

    Args:
        tracks: The living tracks, by ascending id.
        found: The frame's association.
        frame: Number of the frame.
        rules: The thresholds.
        reverse: Whether the video runs backwards.
    """
    young = {
        track.id
        for track in tracks
        if in_hot_start(track.first_frame, frame, rules, reverse=reverse)
    }
    earlier = _earlier_tracks(tracks, found.matched.values(), reverse=reverse)
    matched = set().union(*found.matched.values())
    counted = []
    for track in tracks:
        alive = _keep_alive(
            track.keep_alive,
            matched=track.id in matched,
            missed=(track.id in found.unmatched)
            + (rules.keep_alive_counts_empty and track.id in found.empty),
            rules=rules,
        )
        # After the hot start duplicates no longer count, so the pairs are bounded by its length.
        pairs = Counter(dict(track.duplicate_frames))
        pairs.update(earlier.get(track.id, ()))
        counted.append(
            replace(
                track,
                last_seen=track.last_seen if track.id in found.empty else frame,
                keep_alive=alive,
                unmatched_frames=track.unmatched_frames + (track.id in found.unmatched),
                duplicate_frames=tuple(sorted(pairs.items())) if track.id in young else (),
            )
        )
    if not rules.removes:
        return HotStart(tracks=tuple(counted), removed=(), hidden=())
    removals = [_removal(track, rules) for track in counted if track.id in young]
    removed = tuple(removal for removal in removals if removal is not None)
    ended = {removal.id for removal in removed}
    hidden = [track.id for track in counted if track.id not in ended and _is_hidden(track, rules)]
    return HotStart(tracks=tuple(counted), removed=removed, hidden=tuple(hidden))


def _keep_alive(counter: int, *, matched: bool, missed: int, rules: Rules) -> int:
    """One up to the most, then one down for every miss: a frame may be both."""
    if matched:
        counter = min(rules.keep_alive_most, counter + 1)
    for _ in range(missed):
        counter = max(rules.keep_alive_least, counter - 1)
    return counter


def _earlier_tracks(
    tracks: Sequence[Track], groups: Iterable[Sequence[int]], *, reverse: bool
) -> dict[int, list[int]]:
    """Id -> the earlier track, once for each detection that matched both on this frame."""
    first = {track.id: -track.first_frame if reverse else track.first_frame for track in tracks}
    earlier: dict[int, list[int]] = {}
    for ids in groups:
        if len(ids) < 2:
            continue
        leader = min(ids, key=lambda number: (first[number], number))
        for number in ids:
            if number != leader:
                earlier.setdefault(number, []).append(leader)
    return earlier


def _removal(track: Track, rules: Rules) -> Removal | None:
    # Nothing is removed before the frame that counts it, so a threshold of 0 still needs one.
    if track.unmatched_frames and track.unmatched_frames >= rules.hot_start_unmatched:
        return Removal(id=track.id, reason="unmatched")
    for earlier, frames in track.duplicate_frames:
        if frames >= rules.hot_start_duplicates:
            return Removal(id=track.id, reason="duplicate", duplicate_of=earlier)
    return None


def _is_hidden(track: Track, rules: Rules) -> bool:
    # As there, a track that only ever had empty frames is never hidden.
    return rules.hides_unmatched and track.keep_alive <= 0 and track.unmatched_frames > 0
