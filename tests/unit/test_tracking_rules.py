"""Rules one by one, and what must hold whatever comes."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samforge.core.errors import FidelityError, SettingError, ShapeError
from samforge.runtime.tracking import (
    META,
    TRANSFORMERS,
    Decisions,
    Detected,
    Held,
    MemoryRules,
    Rules,
    Tracked,
    TrackingState,
    conditioning_tracks,
    decide,
    drain,
    filled_holes,
    in_hot_start,
    mask_ious,
    release,
    rules_from_reference,
    scores_from_areas,
    suppressed_masks,
    without_overlaps,
    without_shrunk,
)

SIDE = 12
EMPTY = np.zeros((SIDE, SIDE), np.bool_)
QUICK = replace(META, hot_start_frames=5, hot_start_unmatched=2, hot_start_duplicates=2)


def box(left: int, top: int = 0, width: int = 3, height: int = 3) -> np.ndarray:
    mask = EMPTY.copy()
    mask[top : top + height, left : left + width] = True
    return mask


def detected(
    *masks: np.ndarray, scores: list[float] | None = None, phrases: list[int] | None = None
) -> Detected:
    return Detected.from_masks(
        masks=np.stack(masks) if masks else np.zeros((0, SIDE, SIDE), np.bool_),
        scores=np.array([0.9] * len(masks) if scores is None else scores, np.float32),
        phrases=np.array([0] * len(masks) if phrases is None else phrases, np.int64),
    )


def tracked(*masks: np.ndarray, score: float = 5.0) -> Tracked:
    return Tracked.from_masks(
        masks=np.stack(masks) if masks else np.zeros((0, SIDE, SIDE), np.bool_),
        scores=np.full(len(masks), score, np.float32),
    )


def run(
    frames: list[tuple[Detected, Tracked]], rules: Rules = META
) -> tuple[list[Decisions], TrackingState]:
    state, found = TrackingState(), []
    for number, (come, followed) in enumerate(frames):
        decisions, state = decide(state, number, come, followed, rules)
        found.append(decisions)
    return found, state


# One by one


def test_masks_overlap_by_their_cells() -> None:
    found = mask_ious(np.stack([box(0), EMPTY]), np.stack([box(1), box(0), EMPTY]))
    assert found.tolist() == [[0.5, 1.0, 0.0], [0.0, 0.0, 0.0]]
    with pytest.raises(ShapeError, match=r"\(12, 12\) and \(2, 2\)"):
        mask_ious(box(0)[None], np.ones((1, 2, 2)))


def test_a_first_frame_takes_all_a_later_one_the_sure() -> None:
    unsure = detected(box(0), box(6), scores=[0.6, 0.5])
    found, state = run([(unsure, tracked()), (detected(box(9), scores=[0.69]), tracked(box(0)))])
    assert [(birth.id, birth.detection) for birth in found[0].born] == [(0, 0)]
    assert (found[1].born, found[1].kept) == ((), (0,))
    assert [track.id for track in state.tracks] == [0]


def test_phrases_do_not_meet() -> None:
    both = detected(box(0), box(0), scores=[0.9, 0.8], phrases=[0, 1])
    found, state = run([(both, tracked()), (both, tracked(box(0), box(0)))])
    assert found[0].kept == (0, 1)
    assert [track.phrase for track in state.tracks] == [0, 1]
    assert found[1].matched == {0: (0,), 1: (1,)}


def test_of_equal_scores_the_lower_row_stays() -> None:
    found, _ = run([(detected(box(0), box(1), scores=[0.9, 0.9]), tracked())])
    assert found[0].kept == (0,)


def test_more_than_there_is_room_for() -> None:
    rules = replace(META, most_tracks=3)
    first = detected(box(0), box(4), scores=[0.6, 0.6])
    more = detected(box(8), box(0, 8), box(4, 8), scores=[0.8, 0.95, 0.8])
    found, state = run([(first, tracked()), (more, tracked(box(0), box(4)))], rules)
    assert [(birth.id, birth.detection) for birth in found[1].born] == [(2, 1)]
    assert found[1].dropped == (0, 2)
    assert len(state.tracks) == 3


def test_unmatched_tracks_end_in_their_hot_start_only() -> None:
    born = (detected(box(0)), tracked())
    lost, seen = (detected(), tracked(box(0))), (detected(box(0)), tracked(box(0)))
    found, state = run([born, lost, seen, lost], QUICK)
    assert [(removal.id, removal.reason) for removal in found[3].removed] == [(0, "unmatched")]
    assert state.tracks == ()
    found, state = run([born, *[seen] * 4, *[lost] * 40], QUICK)
    assert [decisions.removed_ids for decisions in found] == [frozenset()] * 45
    assert (state.tracks[0].unmatched_frames, state.tracks[0].keep_alive) == (40, -1)


def test_empty_masks_are_not_unmatched() -> None:
    found, state = run([(detected(box(0)), tracked()), *[(detected(), tracked(EMPTY))] * 9], QUICK)
    assert [decisions.empty for decisions in found[1:]] == [(0,)] * 9
    track = state.tracks[0]
    assert (track.unmatched_frames, track.keep_alive, track.last_seen) == (0, 30, 0)
    assert track.last_occluded == 9


def test_of_duplicates_the_later_one_ends() -> None:
    two = (detected(box(0), box(6)), tracked(box(0)))
    same = (detected(box(0)), tracked(box(0), box(0)))
    found, state = run([(detected(box(0)), tracked()), two, same, same], QUICK)
    assert found[2].removed == ()
    removal = found[3].removed[0]
    assert (removal.id, removal.reason, removal.duplicate_of) == (1, "duplicate", 0)
    assert [track.id for track in state.tracks] == [0]


def test_a_counter_hides_and_shows_again() -> None:
    rules = replace(META, hides_unmatched=True, keep_alive_start=2, keep_alive_most=2)
    lost, seen = (detected(), tracked(box(0))), (detected(box(0)), tracked(box(0)))
    found, _ = run([(detected(box(0)), tracked()), lost, lost, lost, seen, seen], rules)
    assert [decisions.hidden for decisions in found] == [(), (), (0,), (0,), (0,), ()]


def test_siblings_are_conditioned_together_at_metas() -> None:
    two = detected(box(0), box(6))
    frames = [(two, tracked()), (two, tracked(box(0), box(7)))]
    rules = replace(META, recondition_every=1)
    assert run(frames, rules)[0][1].reconditioned == {0: 0}
    assert run(frames, rules)[0][1].conditioning == (0, 1)
    other = replace(TRANSFORMERS, recondition_every=1)
    assert run(frames, other)[0][1].conditioning == (0,)
    assert [item.source for item in run(frames, other)[0][1].shown] == ["detection", "track"]


def test_a_track_below_the_logit_is_not_reconditioned() -> None:
    rules = replace(META, recondition_every=1)
    for score, wanted in ((0.8, {}), (0.9, {0: 0})):
        frames = [(detected(box(0)), tracked()), (detected(box(0)), tracked(box(0), score=score))]
        decisions = run(frames, rules)[0][1]
        assert (decisions.candidates, decisions.reconditioned) == ({0: 0}, wanted)


def test_the_one_occluded_last_gives_way() -> None:
    born = (detected(box(0), box(6)), tracked())
    frames = [
        born,
        (detected(), tracked(EMPTY, box(6))),
        (detected(), tracked(box(0), EMPTY)),
        (detected(), tracked(box(0), box(0))),
    ]
    found, state = run(frames)
    assert found[3].suppressed == (1,)
    assert [track.last_occluded for track in state.tracks] == [1, 3]
    # One that was never occluded suppresses none.
    assert run([born, frames[1], frames[3]])[0][2].suppressed == ()


def test_masks_move_to_other_ids_in_transformers() -> None:
    born = (detected(box(0), box(4), box(8)), tracked())
    lost = (detected(box(4), box(8)), tracked(box(0), box(4), box(8)))
    for rules, wanted in ((META, [0, 1, 2]), (TRANSFORMERS, [1, 2])):
        quick = replace(rules, hot_start_unmatched=1)
        decisions = run([born, lost], quick)[0][1]
        assert decisions.removed_ids == {0}
        assert [item.id for item in decisions.shown] == wanted
        assert [item.row for item in decisions.shown] == list(range(len(wanted)))


def test_backwards_as_forwards() -> None:
    rng = np.random.default_rng(4)
    frames = [(made_up(rng, 0), rng.bit_generator.state) for _ in range(12)]
    ahead, back = TrackingState(), TrackingState()
    for number, (come, seed) in enumerate(frames):
        results = []
        for state, index, reverse in ((ahead, number, False), (back, 100 - number, True)):
            rng.bit_generator.state = seed
            followed = tracked(*[box(int(rng.integers(0, 9))) for _ in state.tracks])
            rules = replace(QUICK, occlusion_iou=0.0, recondition_every=0)
            results.append(decide(state, index, come, followed, rules, reverse=reverse))
        (one, ahead), (other, back) = results
        assert one.born == other.born
        assert one.matched == other.matched
        assert [removal.id for removal in one.removed] == [removal.id for removal in other.removed]
    assert in_hot_start(20, 16, QUICK, reverse=True)
    assert not in_hot_start(20, 15, QUICK, reverse=True)


def test_holes_and_specks() -> None:
    logits = np.where(box(1, 1, 8, 8), 2, -2).astype(np.float32)[None]
    logits[0, 4, 4] = -3  # a hole
    logits[0, 0, 11] = 3  # a speck
    logits[0, 9, 9] = 1  # touches by a corner
    found = filled_holes(logits, 2)
    assert (found[0, 4, 4], found[0, 0, 11], found[0, 9, 9]) == (
        np.float32(0.1),
        np.float32(-0.1),
        1,
    )
    assert int((found != logits).sum()) == 2
    assert np.array_equal(filled_holes(logits, 0), logits)
    # A thing that is small itself is no speck: half of it is less than its one component.
    small = np.where(box(1, 1, 2, 2), 2, -2).astype(np.float32)[None]
    assert np.array_equal(filled_holes(small, 16), small)


def test_masks_that_shrink_are_emptied_within_a_phrase() -> None:
    masks = np.where(np.stack([box(0, 0, 10, 10), box(0, 0, 10, 8)]), 2, -2).astype(np.float32)
    masks[0] += 1
    found = without_shrunk(masks, [0, 0], 0.3)
    assert np.array_equal(found[0], masks[0])
    assert found[1].max() == -10
    assert np.array_equal(without_shrunk(masks, [0, 1], 0.3), masks)
    assert scores_from_areas(found).tolist() == [10, -10]
    shown = without_overlaps(masks, np.array([0.5, 0.9]))
    assert int((shown[0] > 0).sum()) == 20
    assert np.array_equal(shown[1], np.where(masks[1] > 0, masks[1], -10))
    assert suppressed_masks(masks, [1])[1].max() == -10


# Bad input


def test_a_frame_does_not_come_back() -> None:
    _, state = run([(detected(box(0)), tracked())] + [(detected(), tracked(box(0)))] * 2)
    with pytest.raises(SettingError, match="Frame 2 was given after frame 2"):
        decide(state, 2, detected(), tracked(box(0)))
    with pytest.raises(SettingError, match="Give one before it"):
        decide(state, 3, detected(), tracked(box(0)), reverse=True)
    with pytest.raises(SettingError, match="Give 0 or more"):
        decide(TrackingState(), -1, detected(), tracked())
    # Frames may be left out.
    assert decide(state, 7, detected(), tracked(box(0)))[1].frame == 7


def test_rows_that_do_not_belong_together() -> None:
    with pytest.raises(ShapeError, match="0 tracks live, got 1"):
        decide(TrackingState(), 0, detected(), tracked(box(0)))
    with pytest.raises(ShapeError, match="Detections want"):
        Detected.from_masks(
            masks=EMPTY[None], scores=np.ones(2, np.float32), phrases=np.zeros(1, np.int64)
        )
    with pytest.raises(ShapeError, match="Tracked masks want"):
        Tracked.from_masks(masks=EMPTY, scores=np.ones(1, np.float32))
    with pytest.raises(FidelityError, match="detection scores hold NaN"):
        detected(box(0), scores=[float("nan")])
    with pytest.raises(FidelityError, match="tracker scores hold NaN"):
        tracked(box(0), score=float("nan"))
    with pytest.raises(SettingError, match="ascending ids below 0"):
        TrackingState(tracks=run([(detected(box(0)), tracked())])[1].tracks)


def test_numbers_out_of_bounds() -> None:
    with pytest.raises(SettingError, match=r"match_iou is 1\.5"):
        Rules(match_iou=1.5)
    with pytest.raises(SettingError, match="nms_iou is nan"):
        Rules(nms_iou=float("nan"))
    with pytest.raises(SettingError, match="most_tracks is -1"):
        Rules(most_tracks=-1)
    with pytest.raises(SettingError, match="hot start has 4 frames"):
        Rules(hot_start_frames=4)
    with pytest.raises(SettingError, match="reference is 'sam2'"):
        Rules(reference="sam2")
    with pytest.raises(SettingError, match="conditioning is 1"):
        MemoryRules(conditioning=1)
    with pytest.raises(SettingError, match="meta or transformers"):
        rules_from_reference("sam2")
    assert rules_from_reference("meta") is META
    assert rules_from_reference("transformers") is TRANSFORMERS


# Whatever comes


def made_up(rng: np.random.Generator, at_least: int = 0) -> Detected:
    count = int(rng.integers(at_least, 5))
    masks = [box(*rng.integers(0, 9, 2), *rng.integers(1, 6, 2)) for _ in range(count)]
    scores = rng.permutation(np.linspace(0.4, 1, 40))[:count]
    return detected(*masks, scores=scores.tolist(), phrases=rng.integers(0, 2, count).tolist())


def follow(rng: np.random.Generator, state: TrackingState) -> Tracked:
    return tracked(*[box(*rng.integers(0, 9, 2), *rng.integers(0, 6, 2)) for _ in state.tracks])


SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.sampled_from([META, TRANSFORMERS]), st.integers(0, 4))
def test_ids_are_never_given_twice(seed: int, rules: Rules, most: int) -> None:
    rng = np.random.default_rng(seed)
    rules = replace(
        rules, hot_start_frames=5, hot_start_unmatched=2, hot_start_duplicates=2, most_tracks=most
    )
    state, given_ids, ended = TrackingState(), [], set()
    for frame in range(25):
        decisions, state = decide(state, frame, made_up(rng), follow(rng, state), rules)
        born = [birth.id for birth in decisions.born]
        living = {track.id for track in state.tracks}
        given_ids += born
        ended |= decisions.removed_ids
        assert len(living) <= most
        assert not living & ended
        assert living | ended == set(given_ids)
        if decisions.dropped:
            assert len(state.tracks) + len(decisions.removed) == most
    assert given_ids == list(range(state.next_id))


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_the_order_of_detections_decides_ids_alone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    state, other = TrackingState(), TrackingState()
    names: dict[int, int] = {}
    for frame in range(8):
        come = made_up(rng)
        order = rng.permutation(len(come))
        place = {int(row): new for new, row in enumerate(order)}
        followed = follow(rng, state)
        shuffled = [names[track.id] for track in state.tracks]
        rows = np.argsort(shuffled)
        found, state = decide(state, frame, come, followed, QUICK)
        again, other = decide(
            other,
            frame,
            come.taken(order),
            Tracked(cells=followed.cells.taken(rows), scores=followed.scores[rows]),
            QUICK,
        )
        twins = {place[birth.detection]: birth.id for birth in found.born}
        names |= {twins[birth.detection]: birth.id for birth in again.born}
        assert set(again.kept) == {place[row] for row in found.kept}
        assert {names[one] for one in found.unmatched} == set(again.unmatched)
        assert {names[one] for one in found.suppressed} == set(again.suppressed)
        matched = {place[row]: {names[one] for one in ids} for row, ids in found.matched.items()}
        assert matched == {row: set(ids) for row, ids in again.matched.items()}
        # Of two objects of one birth on one detection the lower id stays: only there names count.
        if {names[one] for one in found.removed_ids} != again.removed_ids:
            assert all(removal.reason == "duplicate" for removal in found.removed)
            return


def test_nothing_for_a_thousand_frames() -> None:
    state = TrackingState()
    for frame in range(1000):
        decisions, state = decide(state, frame, detected(), tracked())
        assert (decisions.kept, decisions.born, decisions.shown) == ((), (), ())
    assert state == TrackingState(frame=999)
    decisions, state = decide(state, 1000, detected(box(0)), tracked())
    assert [birth.id for birth in decisions.born] == [0]


def test_a_lost_object_for_a_thousand_frames() -> None:
    seen, lost = (detected(box(0)), tracked(box(0))), (detected(), tracked(box(0)))
    _, state = run([(detected(box(0)), tracked()), *[seen] * 15, *[lost] * 1000])
    assert len(pickle.dumps(state)) < 1000
    assert state.tracks[0].duplicate_frames == ()


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.integers(2, 9), st.lists(st.integers(1, 30), max_size=3))
def test_streams_and_files_show_the_same(seed: int, delay: int, cuts: list[int]) -> None:
    """Whoever feeds the frames, and wherever a stream is saved and taken up again."""
    rules = replace(
        META, hot_start_frames=delay, hot_start_unmatched=2, hot_start_duplicates=2, most_tracks=5
    )
    rng = np.random.default_rng(seed)
    state, everything, waiting, streamed = TrackingState(), [], (), []
    for frame in range(30):
        come, followed = made_up(rng), follow(rng, state)
        if frame in cuts:
            state, waiting = pickle.loads(pickle.dumps((state, waiting)))
        decisions, state = decide(state, frame, come, followed, rules)
        everything.append(decisions)
        step = release(waiting, decisions, rules, payload=frame)
        waiting = step.waiting
        assert len(waiting) == min(frame + 1, delay - 1)
        streamed += step.released
    streamed += drain(waiting).released
    assert [held.payload for held in streamed] == list(range(30))
    ever = frozenset[int]().union(*(decisions.removed_ids for decisions in everything))
    for held, decisions in zip(streamed, everything, strict=True):
        # A file knows every removal before it shows anything: the delay is just long enough.
        wanted = [item for item in decisions.shown if item.id not in ever | set(decisions.hidden)]
        assert list(held.shown) == wanted


def test_without_removals_frames_leave_at_once() -> None:
    decisions, _ = decide(TrackingState(), 3, detected(box(0)), tracked())
    for rules in (replace(META, removes=False), replace(META, hot_start_frames=0)):
        step = release((), decisions, rules)
        assert [held.frame for held in step.released] == [3]
        assert step.waiting == ()
    assert isinstance(release((), decisions, META).waiting[0], Held)


def test_nobody_is_conditioned_without_a_reason() -> None:
    assert conditioning_tracks({}, run([(detected(box(0)), tracked())])[1].tracks, META) == ()
