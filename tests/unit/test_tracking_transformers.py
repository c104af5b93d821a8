"""``TRANSFORMERS`` against the installed transformers' own planning, on made-up scenes.

``Sam3VideoModel.forward`` runs as it is, with answers in place of its networks: a subclass gives
detections and tracked masks, and only notes what would be written to the memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.sam3_tracker_video.modeling_sam3_tracker_video import (
    Sam3TrackerVideoModel,
)
from transformers.models.sam3_video.configuration_sam3_video import Sam3VideoConfig
from transformers.models.sam3_video.modeling_sam3_video import (
    Sam3VideoInferenceSession,
    Sam3VideoModel,
)

from samforge.runtime.tracking import (
    TRANSFORMERS,
    Decisions,
    Detected,
    Rules,
    Tracked,
    TrackingState,
    attended_frames,
    decide,
    mask_ious,
    suppressed_masks,
    without_shrunk,
)

SIDE = 32
NAMES = {
    "score_threshold_detection": "detection_score",
    "assoc_iou_thresh": "match_iou",
    "trk_assoc_iou_thresh": "track_iou",
    "new_det_thresh": "birth_score",
    "hotstart_delay": "hot_start_frames",
    "hotstart_unmatch_thresh": "hot_start_unmatched",
    "hotstart_dup_thresh": "hot_start_duplicates",
    "init_trk_keep_alive": "keep_alive_start",
    "max_trk_keep_alive": "keep_alive_most",
    "min_trk_keep_alive": "keep_alive_least",
    "decrease_trk_keep_alive_for_empty_masklets": "keep_alive_counts_empty",
    "suppress_overlapping_based_on_recent_occlusion_threshold": "occlusion_iou",
    "fill_hole_area": "hole_area",
    "max_num_objects": "most_tracks",
    "recondition_every_nth_frame": "recondition_every",
    "high_conf_thresh": "recondition_score",
    "high_iou_thresh": "recondition_iou",
    "det_nms_thresh": "nms_iou",
}
"""transformers' name -> samforge's, where they hold the same number."""


class Answers(Sam3VideoModel):
    """transformers' rules around answers that are given frame by frame."""

    def __init__(self, rules: Rules) -> None:
        torch.nn.Module.__init__(self)
        for theirs, ours in NAMES.items():
            setattr(self, theirs, getattr(rules, ours))
        self.suppress_unmatched_only_within_hotstart = not rules.hides_unmatched
        self.recondition_on_trk_masks = True
        self.low_res_mask_size = SIDE
        self.detector_model = SimpleNamespace(get_vision_features=lambda pixel_values: None)
        self.answer: Scene | None = None
        self.reconditioned: list[int] = []

    def get_vision_features_for_tracker(self, vision_embeds):
        return None, None

    def run_detection(self, inference_session, vision_embeds):
        found = self.answer.detected
        return {
            phrase: {
                "bbox": torch.zeros(int((found.phrases == phrase).sum()), 4),
                "mask": torch.from_numpy(self.answer.found[found.phrases == phrase]),
                "scores": torch.from_numpy(found.scores[found.phrases == phrase]),
            }
            for phrase in (0, 1)
        }

    def run_tracker_propagation(self, inference_session, frame_idx, reverse):
        scores = self.answer.tracked.scores
        return torch.from_numpy(self.answer.followed.copy()), torch.from_numpy(scores)

    def _tracker_update_memories(
        self, inference_session, frame_idx, low_res_masks, reconditioned_masks=None
    ):
        self.reconditioned = [inference_session.obj_ids[row] for row in reconditioned_masks]

    def _tracker_add_new_objects(
        self, inference_session, frame_idx, new_obj_ids, new_obj_masks, reverse=False
    ):
        for number in new_obj_ids:
            inference_session.obj_id_to_idx(number)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scene:
    """What one frame brings."""

    found: np.ndarray
    """Logits of the detections."""
    detected: Detected
    followed: np.ndarray
    """Logits of the tracks."""
    tracked: Tracked


def drawn(rng: np.random.Generator, thing: int) -> np.ndarray:
    """Logits of a rectangle near the thing's place."""
    top, left = divmod(thing, 3)
    low = np.array([top * 10, left * 10]) + rng.integers(0, 4, 2)
    high = low + rng.integers(5, 10, 2)
    mask = np.full((SIDE, SIDE), -4, np.float32)
    mask[low[0] : high[0], low[1] : high[1]] = 4
    return mask


def scene(rng: np.random.Generator, state: TrackingState, *, ties: bool = True) -> Scene:
    """Detections come and go; tracks stay where they were born, jump, or lose their mask."""
    count = int(rng.integers(0, 7))
    things = rng.integers(0, 5, count)
    masks = [drawn(rng, thing) for thing in things]
    # Those of one phrase come together, as they do in transformers.
    phrases = np.sort(rng.integers(0, 2, count))
    scores = rng.choice([0.55, 0.7, 0.75, 0.8, 0.95], count) if ties else rng.uniform(0.5, 1, count)
    rows = []
    for track in state.tracks:
        mask = drawn(rng, track.id % 5)
        roll = rng.random()
        if roll < 0.5 and count:
            mask = masks[int(rng.integers(0, count))]
        elif roll < 0.6:
            mask = np.full_like(mask, -4)
        rows.append(mask)
    empty = np.zeros((0, SIDE, SIDE), np.float32)
    found = np.stack(masks) if masks else empty
    followed = np.stack(rows) if rows else empty
    return Scene(
        found=found,
        detected=Detected.from_masks(
            masks=found,
            scores=scores.astype(np.float32),
            phrases=phrases.astype(np.int64),
        ),
        followed=followed,
        tracked=Tracked.from_masks(
            masks=followed,
            scores=rng.choice([0.7, 0.8, 0.9, 4.0], len(rows)).astype(np.float32),
        ),
    )


QUICK = {
    "nms_iou": 0.0,  # without the optional kernels transformers has no NMS, nor hole filling
    "hole_area": 0,
}
LIVELY = QUICK | {
    "hot_start_frames": 7,
    "hot_start_unmatched": 3,
    "hot_start_duplicates": 2,
    "keep_alive_start": 3,
    "keep_alive_most": 4,
    "recondition_every": 3,
}
VARIATIONS = {
    "stock": QUICK,
    "lively": LIVELY,
    "hiding": LIVELY | {"hides_unmatched": True, "hot_start_unmatched": 6},
    "empty_counts": LIVELY
    | {"hides_unmatched": True, "keep_alive_counts_empty": True, "hot_start_unmatched": 7},
    "crowded": LIVELY | {"most_tracks": 4},
    "at_once": LIVELY | {"hot_start_unmatched": 1, "occlusion_iou": 0.3},
    "no_occlusion": LIVELY | {"occlusion_iou": 0.0},
}


def compare(
    model: Answers, session: Any, out: Any, come: Scene, found: Decisions, state: TrackingState
) -> None:
    """Hold one frame's decisions to transformers'."""
    ids = [track.id for track in state.tracks]
    assert out.object_ids == ids
    assert session.max_obj_id == state.next_id - 1
    assert set(found.hidden) <= out.suppressed_obj_ids <= set(found.hidden) | found.removed_ids
    assert model.reconditioned == list(found.reconditioned)
    for track in state.tracks:
        assert session.trk_keep_alive[track.id] == track.keep_alive
        assert session.obj_first_frame_idx[track.id] == track.first_frame
        assert len(session.unmatched_frame_inds.get(track.id, ())) == track.unmatched_frames
        assert session.obj_id_to_prompt_id.get(track.id, track.phrase) == track.phrase
        last = session.obj_id_to_last_occluded.get(track.id)
        assert (None if last is None else int(last)) == track.last_occluded
        assert session.obj_id_to_score[track.id] == pytest.approx(track.score)


def shown_arrays(found: Decisions, come: Scene, before: TrackingState) -> dict[int, np.ndarray]:
    """Id -> the mask that is shown."""
    rows = [row for row, track in enumerate(before.tracks) if track.id in found.suppressed]
    masks = suppressed_masks(come.followed, rows)
    sources = {"track": masks, "detection": come.found}
    return {item.id: sources[item.source][item.row] for item in found.shown}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("variation", VARIATIONS)
def test_every_decision_is_transformers(variation: str, seed: int) -> None:
    rules = replace(TRANSFORMERS, **VARIATIONS[variation])
    rng = np.random.default_rng([seed, *variation.encode()])
    model = Answers(rules)
    session = Sam3VideoInferenceSession(video=torch.zeros(40, 3, 2, 2), dtype=torch.float32)
    session.add_prompt("one")
    session.add_prompt("two")
    state, removed = TrackingState(), set()
    for frame in range(40):
        # Which of equal scores is dropped is not said there.
        come = scene(rng, state, ties=rules.most_tracks > 4)
        model.answer, model.reconditioned = come, []
        out = model.forward(session, frame_idx=frame)
        found, after = decide(state, frame, come.detected, come.tracked, rules)
        removed |= found.removed_ids
        assert out.removed_obj_ids == removed
        compare(model, session, out, come, found, after)
        wanted = shown_arrays(found, come, state)
        # A removed object is not shown, and under transformers' shift nothing is under its name
        # but a detection that was to recondition it.
        theirs = {number: mask[0].numpy() for number, mask in out.obj_id_to_mask.items()}
        assert theirs.keys() == wanted.keys()
        for number, mask in theirs.items():
            assert np.array_equal(mask, wanted[number])
        state = after
    assert state.next_id >= min(10, rules.most_tracks)


def test_streaming_removes_nothing_there() -> None:
    rules = replace(TRANSFORMERS, **LIVELY, hides_unmatched=True, removes=False)
    rng = np.random.default_rng(1)
    model = Answers(rules)
    session = Sam3VideoInferenceSession(dtype=torch.float32)
    session.add_prompt("one")
    session.add_prompt("two")
    state = TrackingState()
    for frame in range(30):
        come = scene(rng, state)
        model.answer, model.reconditioned = come, []
        out = model.forward(session, frame=torch.zeros(3, 2, 2))
        found, state = decide(state, frame, come.detected, come.tracked, rules)
        assert (found.removed, found.hidden, out.removed_obj_ids) == ((), (), set())
        compare(model, session, out, come, found, state)


def test_overlaps_and_shrinking_are_transformers() -> None:
    from transformers.models.sam3_video.modeling_sam3_video import mask_iou

    rng = np.random.default_rng(2)
    model = Answers(TRANSFORMERS)
    for _ in range(20):
        masks = np.stack([drawn(rng, int(rng.integers(0, 2))) for _ in range(6)])
        masks *= rng.uniform(0.5, 1.5, masks.shape).astype(np.float32)
        phrases = rng.integers(0, 2, 6)
        theirs = mask_iou(torch.from_numpy(masks > 0), torch.from_numpy(masks > 0)).numpy()
        assert np.array_equal(mask_ious(masks, masks), theirs)
        kept = model._suppress_object_pw_area_shrinkage(
            torch.from_numpy(masks)[:, None], phrases.tolist()
        )
        found = without_shrunk(masks, phrases, TRANSFORMERS.shrink_ratio)
        assert np.array_equal(found, kept[:, 0].numpy())


def test_the_numbers_are_those_of_its_configuration() -> None:
    config = Sam3VideoConfig()
    assert {name: getattr(config, name) for name in NAMES} == {
        name: getattr(TRANSFORMERS, ours) for name, ours in NAMES.items()
    }
    assert config.suppress_unmatched_only_within_hotstart is not TRANSFORMERS.hides_unmatched
    assert config.high_conf_thresh == TRANSFORMERS.recondition_logit
    assert config.recondition_on_trk_masks
    tracker = config.tracker_config
    assert tracker.num_maskmem == TRANSFORMERS.memory.memories
    assert tracker.max_cond_frame_num == TRANSFORMERS.memory.conditioning
    assert tracker.max_object_pointers_in_encoder == TRANSFORMERS.memory.pointers


def test_defaults_of_the_shrinking() -> None:
    import inspect

    parameters = inspect.signature(Sam3VideoModel._suppress_shrunk_masks).parameters
    assert parameters["shrink_threshold"].default == TRANSFORMERS.shrink_ratio


class Tracker(Sam3TrackerVideoModel):
    """The choice of memories alone."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        rules = TRANSFORMERS.memory
        self.num_maskmem = rules.memories
        self.config = SimpleNamespace(
            max_cond_frame_num=rules.conditioning, max_object_pointers_in_encoder=rules.pointers
        )
        self.training = False


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("seed", range(30))
def test_memories_and_pointers_are_transformers(seed: int, reverse: bool) -> None:
    rng = np.random.default_rng(seed)
    length = int(rng.integers(4, 50))
    frame = int(rng.integers(1, length - 1))
    others = [number for number in range(length) if number != frame]
    known = sorted(rng.choice(others, int(rng.integers(1, length)), replace=False).tolist())
    conditioning = sorted(rng.choice(known, min(len(known), int(rng.integers(1, 8))), False))
    conditioning = [int(number) for number in conditioning]
    ordinary = [number for number in known if number not in conditioning]
    known_of = {n: {"frame": n, "object_pointer": torch.tensor(n)} for n in known}
    outputs = {
        "cond_frame_outputs": {n: known_of[n] for n in conditioning},
        "non_cond_frame_outputs": {n: known_of[n] for n in ordinary},
    }
    session = SimpleNamespace(output_dict_per_obj={0: outputs})
    model = Tracker()
    memories = model._gather_memory_frame_outputs(session, 0, frame, reverse)
    offsets, pointers, most = model._get_object_pointers(session, 0, frame, length, "cpu", reverse)
    found = attended_frames(
        conditioning,
        dict.fromkeys(ordinary, 0.0),
        frame,
        TRANSFORMERS.memory,
        length=length,
        reverse=reverse,
    )
    assert found.memories == tuple((out["frame"], code) for code, out in memories if out)
    assert found.pointers == tuple(zip(map(int, pointers), offsets, strict=True))
    assert found.pointer_span == most - 1
