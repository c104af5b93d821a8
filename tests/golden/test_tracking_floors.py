"""What the tiny tracker must do in fp32, on held-out clips, its parts as they were trained."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samforge.core.capabilities import TEXT, TRACKER_PARTS
from samforge.core.images import ImageSpec
from samforge.measure.clicking import first_click, iou_after_clicks
from samforge.measure.clips import ClipFigures, SharedFrames, measure_clip, summed_clips
from samforge.measure.tracks import compare_tracks
from samforge.media import read_image
from samforge.models import tiny
from samforge.models.eager import EagerSession
from samforge.models.tiny.crossing import draw_crossing
from samforge.models.tiny.held_out_clips import SHOWN, labelled_clips
from samforge.runtime import ObjectPrompt, PhraseTokenizer, Segmenter, segmenter_from_sessions
from samforge.runtime.tracking import PromptAt, track_video

TOOLS = str(Path(__file__).resolve().parents[2] / "tools")


@pytest.fixture(scope="module")
def parts(one_thread: None) -> dict[str, Any]:
    """Parts of the tiny model, by name."""
    from samforge.models.sam3.loading import checkpoint_from_name
    from samforge.models.sam3.parts import part_from_checkpoint

    checkpoint = checkpoint_from_name("tiny", tracker=True)
    names = dict.fromkeys((*TEXT.parts, *TRACKER_PARTS))
    return {name: part_from_checkpoint(checkpoint, name) for name in names}


@pytest.fixture(scope="module")
def segmenter(parts: dict[str, Any]) -> Segmenter:
    return segmenter_from_sessions(
        {name: EagerSession(part) for name, part in parts.items()},
        ImageSpec(size=tiny.SIZE),
        PhraseTokenizer(tiny.TOKENIZER_PATH, 32, 0),
        read_image,
    )


@pytest.fixture
def following() -> Iterator[Any]:
    """``tools/tiny_training/following.py``: what the trainer follows objects by."""
    sys.path.insert(0, TOOLS)
    try:
        yield importlib.import_module("tiny_training.following")
    finally:
        sys.path.remove(TOOLS)


def measured(segmenter: Segmenter, clips: int, first: int, frames: int) -> ClipFigures:
    labelled = labelled_clips(clips, first=first, frames=frames)
    return summed_clips(measure_clip(segmenter, clip) for clip in labelled)


def test_short_clips(segmenter: Segmenter) -> None:
    figures = measured(segmenter, 2, 1, 6).to_dict()
    clicks, emptied, text = (figures[name] for name in ("clicks", "clicks, no memory", "text"))
    assert clicks["objects"] >= 8
    assert clicks["j_and_f"] >= 0.85
    assert text["j_and_f"] >= 0.85
    assert text["idf1"] >= 0.90
    assert text["switches"] == 0
    assert emptied["j_and_f"] <= 0.5


def test_clicks(segmenter: Segmenter) -> None:
    ious = [
        own
        for clip in labelled_clips(8, first=2, frames=1)
        for own in iou_after_clicks(
            segmenter,
            clip.images_rgb[0],
            {number: clip.masks[0][number] for number in clip.shown},
            3,
            hole_area=0,
        ).values()
    ]
    mean = np.mean(ious, axis=0)
    assert len(ious) >= 30
    assert mean[0] >= 0.85
    assert mean[2] >= mean[0]


def test_a_session_follows_as_the_trainer_does(
    parts: dict[str, Any], segmenter: Segmenter, following: Any
) -> None:
    """Two ways from a click to masks, written apart: what is trained is what runs."""
    import torch

    scenes = list(draw_crossing(3, frames=6))
    shown = np.flatnonzero(scenes[0].visible_shares >= SHOWN)
    truth = np.stack([scene.masks[shown] for scene in scenes])
    with torch.inference_mode():
        follower = following.Follower(parts, torch.device("cpu"), scenes)
        wanted = follower.follow(follower.clicked(truth[0], 1)[0])
    found = track_video(
        SharedFrames(segmenter.tracker_parts()),
        [scene.image for scene in scenes],
        prompts=[
            PromptAt(frame=0, prompt=ObjectPrompt(points=[first_click(mask)])) for mask in truth[0]
        ],
    )
    one = compare_tracks(
        [dict(enumerate(masks)) for masks in wanted],
        [frame.detections for frame in found][1:],
    )
    assert one.pairs == {number: number for number in range(len(shown))}
    assert one.worst >= 0.98
    assert (one.extra, one.identities.switches) == ((), 0)


@pytest.mark.slow
def test_clips_in_full(segmenter: Segmenter) -> None:
    figures = measured(segmenter, 20, 0, 32).to_dict()
    assert figures["clicks"]["j_and_f"] >= 0.80
    assert figures["text"]["j_and_f"] >= 0.80
    assert figures["text"]["idf1"] >= 0.85
    assert figures["clicks, no memory"]["j_and_f"] <= 0.4
