"""A frame of a session: objects followed, rules applied, what is seen remembered and drawn."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from samforge.core.capabilities import MEMORY_ENCODER, MEMORY_ENCODER_TEXT
from samforge.core.masks import Masks
from samforge.core.reference import META
from samforge.runtime.pending import Pending
from samforge.runtime.postprocess import sigmoid
from samforge.runtime.tracking.bank import Memory, remember
from samforge.runtime.tracking.between import undetected
from samforge.runtime.tracking.calls import ask_masks, encode_memories, nothing
from samforge.runtime.tracking.constants import Rules
from samforge.runtime.tracking.drawn import Drawn, DrawnObject
from samforge.runtime.tracking.following import Followed
from samforge.runtime.tracking.objects import SessionState, TrackedObject, Turn, group_scores
from samforge.runtime.tracking.parts import FoundInFrame
from samforge.runtime.tracking.remembered import remembered
from samforge.runtime.tracking.rules import decide, shown_masks
from samforge.runtime.tracking.seen import Seen, SeenMask
from samforge.runtime.tracking.stacks import MaskStack
from samforge.runtime.tracking.state import (
    Decisions,
    Shown,
    Track,
    Tracked,
    TrackingState,
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Advanced:
    """What a frame brought."""

    decisions: Decisions
    """Of the rules; objects of prompts are never hidden or removed by them."""
    tracking: TrackingState
    """After the frame."""
    objects: Mapping[int, TrackedObject]
    """After the frame, with the newborn."""
    drawn: Pending[Drawn]
    """What the frame shows."""
    raw: Mapping[int, SeenMask]
    """Masks by id, as the decoder gave them: a correction of this frame begins there."""


def advance(
    turn: Turn, state: SessionState, found: FoundInFrame | None, followed: Followed
) -> Advanced:
    """Take a session one frame further.

    Args:
        turn: The frame.
        state: Before it; every object has something to remember.
        found: What phrases found on it; None where they were not looked for.
        followed: The objects of ``state`` on it.

    Raises:
        FidelityError: What was found, or the tracker's answer, holds NaN or infinity.
    """
    seen, masks = followed.seen, followed.filled
    tracked = Tracked(cells=masks.cells, scores=seen.scores)
    decisions, tracking = _decided(turn, state, found, tracked)
    rows = {number: row for row, number in enumerate(state.objects)}
    born = {birth.id: birth.detection for birth in decisions.born}
    tracking_phrases = {track.id: track.phrase for track in tracking.tracks}
    newborn = {
        number: TrackedObject(
            id=number,
            label=state.phrases[tracking_phrases[number]],
            by_text=True,
            begun=turn.frame,
        )
        for number in born
    }
    known = {**state.objects, **newborn}
    given = _given(turn, decisions, found, born)
    sights = _Sights(
        seen=seen,
        masks=masks.emptied([rows[number] for number in decisions.suppressed]),
        given=given,
        tracks=state.tracking.tracks,
    )
    return Advanced(
        decisions=decisions,
        tracking=tracking,
        objects=_remembered(turn, decisions, sights, known),
        drawn=_drawn(turn, decisions, sights, _Names(known, tracking.tracks, found, state.phrases)),
        raw={number: SeenMask(seen.masks, row) for number, row in rows.items()}
        | {number: SeenMask(given.seen.masks, given.rows[number]) for number in born},
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Given:
    """Masks that detections give: to the newborn and, as Meta does, to corrected objects."""

    seen: Seen
    rows: Mapping[int, int]
    """By id."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Sights:
    """What is known of the objects of a frame."""

    seen: Seen
    """What the tracker said of the objects that lived before the frame."""
    masks: MaskStack
    """N, with holes filled, empty where one gives way to another."""
    given: _Given
    tracks: Sequence[Track]
    """N, before the frame."""


@dataclass(frozen=True, slots=True, eq=False)
class _Names:
    """What a frame says of its objects beside their masks."""

    objects: Mapping[int, TrackedObject]
    tracks: Sequence[Track]
    """After the frame."""
    found: FoundInFrame | None
    phrases: tuple[str, ...]


def _decided(
    turn: Turn, state: SessionState, found: FoundInFrame | None, tracked: Tracked
) -> tuple[Decisions, TrackingState]:
    frame, rules, reverse = turn.frame, turn.rules, turn.way.reverse
    if found is None:
        return undetected(state.tracking, frame, tracked, rules, reverse=reverse)
    found.require_finite(state.phrases)
    decisions, tracking = decide(
        state.tracking, frame, found.detected, tracked, rules, reverse=reverse
    )
    # A user's objects match no detection where their name is no phrase, and are hidden by none.
    hidden = [number for number in decisions.hidden if state.objects[number].by_text]
    shown = _shown(decisions, state, rules)
    return replace(decisions, hidden=tuple(hidden), shown=shown), tracking


def _shown(decisions: Decisions, state: SessionState, rules: Rules) -> tuple[Shown, ...]:
    """Where masks come from; a user's objects keep their own where the rules shift rows."""
    tracks = state.tracking.tracks
    text = [row for row, track in enumerate(tracks) if state.objects[track.id].by_text]
    if not rules.shifts_rows or len(text) == len(tracks):
        return decisions.shown
    own = {
        track.id: Shown(id=track.id, source="track", row=row)
        for row, track in enumerate(tracks)
        if row not in text
    }
    for item in shown_masks(decisions, [tracks[row] for row in text], rules):
        own[item.id] = replace(item, row=text[item.row]) if item.source == "track" else item
    return tuple(own[number] for number in sorted(own))


def _given(
    turn: Turn, decisions: Decisions, found: FoundInFrame | None, born: Mapping[int, int]
) -> _Given:
    # transformers only marks a corrected frame: pointer and memory stay the tracker's.
    corrected = decisions.reconditioned if turn.rules.reference == META else {}
    rows = {**born, **corrected}
    if found is None or not rows:
        return _Given(seen=nothing(turn.parts), rows={})
    given, masks = turn.parts.give(found.masks.taken(list(rows.values())), turn.encoded.size_hw)
    seen = ask_masks(turn.parts, turn.features, given, masks)
    return _Given(seen=seen, rows={number: row for row, number in enumerate(rows)})


def _remembered(
    turn: Turn, decisions: Decisions, sights: _Sights, known: Mapping[int, TrackedObject]
) -> dict[int, TrackedObject]:
    """Every object that lives on, with what it keeps of this frame."""
    features = _memories(turn, decisions, sights, known)
    before = [known[track.id] for track in sights.tracks]
    scores = dict(zip((one.id for one in before), group_scores(before, sights.seen), strict=True))
    rows = {track.id: row for row, track in enumerate(sights.tracks)}
    conditioning = {*decisions.conditioning, *(birth.id for birth in decisions.born)}
    objects = {}
    for number, kept in sorted(features.items()):
        given = sights.given.rows.get(number)
        pointers = sights.seen.pointers if given is None else sights.given.seen.pointers
        memory = Memory(
            frame=turn.frame,
            # A copy: a row of a batch would keep the batch.
            pointer=pointers[rows[number] if given is None else given].copy(),
            features=kept,
            conditioning=number in conditioning,
            score=float(scores.get(number, 0.0)),
        )
        one = known[number]
        bank = remember(one.bank, memory, turn.way.rules, reverse=turn.way.reverse)
        objects[number] = TrackedObject(
            id=number, label=one.label, by_text=one.by_text, begun=one.begun, bank=bank
        )
    return objects


def _memories(
    turn: Turn, decisions: Decisions, sights: _Sights, known: Mapping[int, TrackedObject]
) -> dict[int, Any]:
    """Features by id: a call for objects of phrases, one for all others, one for the newborn."""
    side = turn.parts.facts.memory_side
    text = [row for row, track in enumerate(sights.tracks) if known[track.id].by_text]
    phrases = [sights.tracks[row].phrase for row in text]
    # Objects that end on this frame still take their share of the others' masks.
    masks, scores = remembered(sights.masks.taken(text), phrases, turn.rules, side)
    staying = [at for at, row in enumerate(text) if _stays(sights.tracks[row].id, decisions)]
    tracked = encode_memories(
        turn.parts,
        MEMORY_ENCODER_TEXT,
        turn.features,
        masks.taken(staying),
        scores[staying],
        np.zeros(len(staying), np.bool_),
    )
    found = dict(zip((sights.tracks[text[at]].id for at in staying), tracked, strict=True))
    prompted = [row for row, track in enumerate(sights.tracks) if not known[track.id].by_text]
    others = encode_memories(
        turn.parts,
        MEMORY_ENCODER,
        turn.features,
        sights.masks.taken(prompted),
        sights.seen.scores[prompted],
        np.zeros(len(prompted), np.bool_),
    )
    found |= zip((sights.tracks[row].id for row in prompted), others, strict=True)
    return found | _memories_of_births(turn, decisions, sights, known)


def _memories_of_births(
    turn: Turn, decisions: Decisions, sights: _Sights, known: Mapping[int, TrackedObject]
) -> dict[int, Any]:
    """Features of the newborn: as of masks that are given, so that those of a phrase share none."""
    phrases: dict[str, list[int]] = {}
    for birth in decisions.born:
        phrases.setdefault(known[birth.id].label, []).append(birth.id)
    given = sights.given.seen
    found: dict[int, Any] = {}
    for ids in phrases.values():
        rows = [sights.given.rows[number] for number in ids]
        kept = encode_memories(
            turn.parts,
            MEMORY_ENCODER,
            turn.features,
            given.masks.taken(rows),
            given.scores[rows],
            np.ones(len(rows), np.bool_),
        )
        found |= zip(ids, kept, strict=True)
    return found


def _stays(number: int, decisions: Decisions) -> bool:
    return number not in decisions.removed_ids


def _drawn(turn: Turn, decisions: Decisions, sights: _Sights, names: _Names) -> Pending[Drawn]:
    born = {birth.id for birth in decisions.born}
    scores = {track.id: track.score for track in names.tracks}
    living = [item for item in decisions.shown if item.id in scores]  # others ended on this frame
    begun = _begin_masks(turn, living, sights, names.found, born)

    def drawn() -> Drawn:
        masks = {number: one.result()[at : at + 1] for number, (one, at) in begun.items()}
        return Drawn(
            size_hw=turn.encoded.size_hw,
            objects=_objects(living, masks, sights, names),
            detected=names.found is not None,
            dropped=len(decisions.dropped),
            removed=tuple(sorted(decisions.removed_ids)),
            born=tuple(birth.id for birth in decisions.born),
            matched=tuple(sorted({one for ids in decisions.matched.values() for one in ids})),
            best_scores=dict(names.found.best_scores) if names.found is not None else {},
        )

    return Pending(drawn)


def _objects(
    living: Sequence[Shown], masks: Mapping[int, Masks], sights: _Sights, names: _Names
) -> dict[int, DrawnObject]:
    tracks = {track.id: track for track in names.tracks}
    ranks = sigmoid(sights.seen.scores).tolist()
    objects = {}
    for item in living:
        one, track = names.objects[item.id], tracks[item.id]
        rank = ranks[item.row] if _of_track(item, names.found) else track.score
        objects[item.id] = DrawnObject(
            label=one.label,
            phrase=track.phrase,
            score=track.score if one.by_text else rank,
            rank=rank,
            masks=masks[item.id],
        )
    return objects


def _of_track(item: Shown, found: FoundInFrame | None) -> bool:
    return item.source == "track" or found is None


def _begin_masks(
    turn: Turn,
    living: Sequence[Shown],
    sights: _Sights,
    found: FoundInFrame | None,
    born: Collection[int],
) -> dict[int, tuple[Pending[Masks], int]]:
    """The mask of each object by id, in one call for those of tracks and one for detections."""
    size_hw = turn.encoded.size_hw
    begun: dict[int, tuple[Pending[Masks], int]] = {}
    own = [item for item in living if _of_track(item, found)]
    if own:
        drawn = turn.parts.begin_draw(sights.masks.taken([item.row for item in own]), size_hw)
        begun |= {item.id: (drawn, at) for at, item in enumerate(own)}
    others = [item for item in living if not _of_track(item, found)]
    if others and found is not None:
        masks = found.masks.taken([item.row for item in others])
        fills = [at for at, item in enumerate(others) if item.id in born]
        if fills:
            masks = masks.filled(turn.rules.hole_area, fills)
        drawn = turn.parts.begin_draw(masks, size_hw)
        begun |= {item.id: (drawn, at) for at, item in enumerate(others)}
    return begun
