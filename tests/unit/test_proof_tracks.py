"""Clicks and tracks that a bundle carries: what users load is held to what fp32 answered."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from made_up import reseal
from tests.helpers.scripted_tracker import ScriptedParts, Thing, picture

import samforge
from samforge.apps import cli
from samforge.core.detections import Detections
from samforge.core.errors import DamagedBundle, FidelityError
from samforge.core.manifest import TRACKS_NAME
from samforge.core.recipe import Gates
from samforge.measure.proof_tracks import (
    ProofTracks,
    check_proof_tracks,
    proof_tracks_from_file,
    write_proof_tracks,
)
from samforge.measure.tracker_questions import Questions, ask_tracker, panned
from samforge.runtime import ObjectPrompt, PromptAt, Segmenter
from samforge.runtime.tracking import VideoFrame, track_video

CAT, OTHER = Thing((1, 1, 5, 5)), Thing((9, 8, 13, 13), score=0.8)
PICTURE = picture(0)
CENTRES = ([[9.0, 6.0]], [[33.0, 21.0]])
"""Of the two things, in pixels of a picture of 48 x 32."""


class Scripted:
    """What a segmenter is asked here, by a script."""

    def __init__(self, *things: Thing) -> None:
        self.parts = ScriptedParts(things)

    def predict_objects(self, image: Any, prompts: Sequence[ObjectPrompt]) -> Detections:
        shown = [PromptAt(frame=0, prompt=one) for one in prompts]
        return next(track_video(self.parts, [image], prompts=shown)).detections

    def track_video(self, clip: Any, **asked: Any) -> Iterator[VideoFrame]:
        return track_video(self.parts, clip, **asked)


def segmenter(*things: Thing) -> Segmenter:
    return cast(Segmenter, Scripted(*things))


@pytest.fixture
def proof() -> ProofTracks:
    """Two clicks on a picture, and a walk of three frames over it."""
    prompts = tuple(ObjectPrompt(points=centre) for centre in CENTRES)
    questions = Questions(
        pictures=(PICTURE,),
        clicks=(prompts,),
        clips=(panned(PICTURE, 3),),
        shown=((PromptAt(frame=0, prompt=ObjectPrompt(points=[[6, 4]])),),),
        phrases=(("cat",),),
    )
    return ProofTracks(questions=questions, said=ask_tracker(segmenter(CAT, OTHER), questions))


def test_questions_and_answers_come_back(proof: ProofTracks, tmp_path: Path) -> None:
    path = tmp_path / "verify" / "tracks.json"
    write_proof_tracks(path, proof)
    again = proof_tracks_from_file(path, [PICTURE])
    assert again.questions.phrases == (("cat",),)
    assert [np.asarray(one.points).tolist() for one in again.questions.clicks[0]] == [
        [list(map(float, np.asarray(one.points)[0]))] for one in proof.questions.clicks[0]
    ]
    (clip,), (wanted,) = again.questions.clips, proof.questions.clips
    assert all(np.array_equal(one, other) for one, other in zip(clip, wanted, strict=True))
    assert len(again.said.followed) == 2
    for run, other in zip(again.said.followed, proof.said.followed, strict=True):
        for one, frame in zip(run, other, strict=True):
            assert one.ids is not None
            assert frame.ids is not None
            assert np.array_equal(one.ids, frame.ids)
            assert np.array_equal(one.masks.dense(), frame.masks.dense())
    assert "logits" not in path.read_text()


def test_the_same_segmenter_holds_every_gate(proof: ProofTracks) -> None:
    same = segmenter(CAT, OTHER)
    fidelity, limits = check_proof_tracks(proof, same, precision="int8", gates=Gates())
    assert limits == {"click_iou": 0.98, "track_iou": 0.98}
    assert fidelity.measured == {"click_iou": 1, "track_iou": 1}
    assert fidelity.in_words() == "2 clicks, 3 tracks, 3 found"


def test_clicks_that_miss_and_objects_that_are_lost_are_seen(proof: ProofTracks) -> None:
    moved = segmenter(replace(CAT, box=(2, 1, 6, 5)), OTHER)
    with pytest.raises(FidelityError, match=r"click_iou is 0\.7966, the gate is 0\.98 \(2 clicks"):
        check_proof_tracks(proof, moved, precision="int8", gates=Gates())
    lost = segmenter(CAT, replace(OTHER, missed=range(1)))
    with pytest.raises(FidelityError, match=r"track_iou is 0\.0000, the gate is 0\.9"):
        check_proof_tracks(proof, lost, precision="int8", gates=Gates(click_iou=0))


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"clicks": [], "clips": []}', '{"clicks": [{"points": 1}], "clips": []}'],
)
def test_a_file_that_is_no_proof(text: str, tmp_path: Path) -> None:
    path = tmp_path / "tracks.json"
    path.write_text(text)
    with pytest.raises(DamagedBundle, match="cannot be read as a proof"):
        proof_tracks_from_file(path, [PICTURE])
    with pytest.raises(DamagedBundle, match="cannot be read as a proof"):
        proof_tracks_from_file(tmp_path / "gone.json", [PICTURE])


@pytest.mark.slow
def test_verify_clicks_and_follows(
    tracked_bundle: samforge.Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(tracked_bundle.root, tmp_path / "bundle"))
    found = samforge.verify(root)
    assert found.tracking is not None
    assert found.tracking.tracks is not None
    assert found.tracking.clicks.clicks >= 4
    assert found.tracking.tracks.tracks >= 2
    assert found.gates["click_iou"][0] > 0.999
    assert found.gates["track_iou"][0] > 0.999
    (step,) = (one for one in samforge.open_bundle(root).manifest.steps if "here" in one.name)
    assert {"click_iou", "track_iou"} <= set(step.gates)
    (root / TRACKS_NAME).unlink()
    reseal(root, samforge.open_bundle(tracked_bundle.root).manifest)
    assert cli.main(["verify", str(root)]) == 0
    assert "Clicks and tracks were not verified" in capsys.readouterr().err
