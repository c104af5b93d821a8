"""Every decision of Meta's planning step, replayed frame by frame on made-up detections."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.golden.meta.tracking import FILE, StoryFrame, story, tracking_arrays, unpacked
from tools import meta_weights

from samforge.runtime.tracking import (
    META,
    Decisions,
    Rules,
    TrackingState,
    decide,
    drain,
    filled_holes,
    held_from_decisions,
    release,
    without_overlaps,
    without_shrunk,
)

PAGE = Path(__file__).with_name("tracking.md").read_text()


@pytest.fixture(scope="module")
def replayed() -> list[tuple[StoryFrame, TrackingState, Decisions, TrackingState]]:
    """The story: what came, the state before, the decisions, the state after."""
    state, steps = TrackingState(), []
    for number, frame in enumerate(story()):
        decisions, after = decide(state, number, frame.detected, frame.tracked)
        steps.append((frame, state, decisions, after))
        state = after
    return steps


def as_meta_says(before: TrackingState, found: Decisions, after: TrackingState) -> dict[str, Any]:
    """The decisions under Meta's names, detections numbered among the kept ones."""
    kept = {row: place for place, row in enumerate(found.kept)}
    return {
        "kept_detections": list(found.kept),
        "tracks": [track.id for track in before.tracks],
        "born": {str(birth.id): kept[birth.detection] for birth in found.born},
        "matched": {str(kept[row]): list(ids) for row, ids in found.matched.items()},
        "unmatched": list(found.unmatched),
        "removed": sorted(found.removed_ids),
        "recondition_candidates": {str(one): kept[row] for one, row in found.candidates.items()},
        "reconditioned": [[one, kept[row]] for one, row in found.reconditioned.items()],
        "suppressed_by_recent_occlusion": list(found.suppressed),
        "last_occluded": {
            str(track.id): track.last_occluded
            for track in after.tracks
            if track.last_occluded is not None
        },
        "living_after": [track.id for track in after.tracks],
    }


def test_the_file_is_the_one_of_the_page() -> None:
    assert re.search(rf"`{hashlib.sha256(FILE.read_bytes()).hexdigest()}`", PAGE)


def test_every_decision_is_metas(replayed: list[Any]) -> None:
    assert len(replayed) == 40
    for frame, before, decisions, after in replayed:
        found = as_meta_says(before, decisions, after)
        assert found == {name: frame.said[name] for name in found}, decisions.frame


def test_counters_and_scores_are_metas(replayed: list[Any]) -> None:
    for frame, _, decisions, after in replayed:
        # Meta keeps the counters of removed tracks; here they leave with them.
        for track in after.tracks:
            assert track.keep_alive == frame.said["keep_alive"][str(track.id)], decisions.frame
            assert track.score == pytest.approx(frame.said["score"][str(track.id)], abs=1e-6)


def test_the_story_tells_of_every_rule(replayed: list[Any]) -> None:
    everything = [decisions for _, _, decisions, _ in replayed]
    assert sum(len(decisions.born) for decisions in everything) == 10
    removals = [removal for decisions in everything for removal in decisions.removed]
    assert [(removal.id, removal.reason) for removal in removals] == [
        (3, "unmatched"),
        (2, "unmatched"),
        (6, "duplicate"),
        (7, "duplicate"),
    ]
    assert [removal.duplicate_of for removal in removals] == [None, None, 1, 4]
    assert {d.frame: d.reconditioned for d in everything if d.reconditioned} == {
        16: {0: 0, 1: 1},
        32: {0: 0, 4: 2},
    }
    # 0 and 1 were born with 2 and 3, which are gone by then; 4 was born alone.
    assert {d.frame: d.conditioning for d in everything if d.conditioning} == {
        16: (0, 1),
        32: (0, 1, 4),
    }
    assert [d.frame for d in everything if 6 in d.suppressed] == list(range(17, 25))
    assert any(len(d.kept) < len(frame.detected) for frame, _, d, _ in replayed)


def test_reconditioned_masks_are_not_shown(replayed: list[Any]) -> None:
    for frame, before, decisions, _ in replayed:
        assert frame.said["output_overridden"] == []
        rows = {item.id: item.row for item in decisions.shown if item.source == "track"}
        assert rows == {track.id: row for row, track in enumerate(before.tracks)}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("detection_score", 0.57), ("nms_iou", 0.75), ("match_iou", 0.21), ("track_iou", 0.3)),
        *(("birth_score", 0.65), ("birth_score", 0.72), ("recondition_score", 0.78)),
        *(("hot_start_unmatched", 7), ("hot_start_unmatched", 9), ("hot_start_frames", 13)),
        *(("hot_start_duplicates", 7), ("hot_start_duplicates", 9), ("recondition_every", 15)),
        *(("keep_alive_start", 29), ("keep_alive_most", 31), ("recondition_logit", 0.4)),
        *(("removes", False), ("keep_alive_counts_empty", True), ("most_tracks", 5)),
    ],
)
def test_other_rules_decide_otherwise(name: str, value: float) -> None:
    """The story would notice: tracking.md says what it leaves open."""
    assert not follows(replace(META, **{name: value}))


def follows(rules: Rules) -> bool:
    """Whether all decisions of the story are Meta's."""
    state = TrackingState()
    for number, frame in enumerate(story()):
        if [track.id for track in state.tracks] != frame.said["tracks"]:
            return False
        decisions, after = decide(state, number, frame.detected, frame.tracked, rules)
        found = as_meta_says(state, decisions, after)
        counters = {str(track.id): track.keep_alive for track in after.tracks}
        if found != {name: frame.said[name] for name in found}:
            return False
        if counters != {one: frame.said["keep_alive"][one] for one in counters}:
            return False
        state = after
    return True


def test_streams_show_what_files_show(replayed: list[Any]) -> None:
    """Frame by frame with a delay, as when all removals are known that can still come."""
    waiting, streamed = (), []
    for _, _, decisions, _ in replayed:
        step = release(waiting, decisions, META)
        waiting = step.waiting
        assert len(waiting) < META.hot_start_frames
        streamed += step.released
    streamed += drain(waiting).released
    removals = [decisions.removed_ids for _, _, decisions, _ in replayed]
    for number, (_, _, decisions, _) in enumerate(replayed):
        gone = set[int]().union(*removals[: number + META.hot_start_frames])
        wanted = [item for item in held_from_decisions(decisions).shown if item.id not in gone]
        assert streamed[number].frame == number
        assert list(streamed[number].shown) == wanted
    # Nothing that is ever removed was shown.
    shown = {item.id for held in streamed for item in held.shown}
    assert shown == {0, 1, 4, 5, 8, 9}


def test_small_holes_are_filled_as_at_metas(replayed: list[Any]) -> None:
    for frame, *_ in replayed:
        logits = np.where(frame.unfilled, 4, -4).astype(np.float32)
        assert np.array_equal(filled_holes(logits, META.hole_area) > 0, frame.filled)


def test_filled_logits_are_metas() -> None:
    coarse = meta_weights.normal("input.holes.coarse", (4, 16, 16))
    fine = meta_weights.normal("input.holes.fine", (4, 64, 64))
    logits = (np.kron(coarse, np.ones((1, 4, 4))) + 0.7 * fine).astype(np.float32)
    found = filled_holes(logits, META.hole_area)
    assert np.array_equal(found, tracking_arrays()["functions/fill_holes/output"])
    assert int((found != logits).sum()) == 720


def clamped(name: str, masks: np.ndarray) -> np.ndarray:
    cells = unpacked(tracking_arrays()[f"functions/{name}/clamped"])
    return np.where(cells, np.float32(-10), masks)


def test_shrunk_masks_are_emptied_as_at_metas() -> None:
    masks = tracking_arrays()["functions/shrinkage/input"]
    found = without_shrunk(masks, np.zeros(len(masks)), META.shrink_ratio)
    assert np.array_equal(found, clamped("shrinkage", masks))


def test_cells_go_to_the_best_object_as_at_metas() -> None:
    masks = tracking_arrays()["functions/shrinkage/input"]
    scores = tracking_arrays()["functions/object_wise/scores"]
    assert np.array_equal(without_overlaps(masks, scores), clamped("object_wise", masks))
