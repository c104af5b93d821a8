"""Pictures of a report: which questions are drawn, and what stands beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from samforge.core.detections import Detections
from samforge.models.tiny import labelled_scenes
from samforge.steps.pictures import pictures_from_folder, write_pictures


def test_questions_that_were_not_asked_are_left_out(tmp_path: Path) -> None:
    """A bundle without the part for boxes is asked none."""
    scenes = list(labelled_scenes(6))
    answers = {}
    for number, scene in enumerate(scenes):
        for place, question in enumerate(scene.questions):
            if question.boxes_xyxy is not None:
                continue
            masks = np.zeros((1, *scene.image_rgb.shape[:2]), np.bool_)
            masks[:, 10:40, 20:50] = True
            found = Detections(
                masks=masks,
                boxes_xyxy=np.array([[20, 10, 50, 40]], np.float32),
                scores=np.array([0.9], np.float32),
                labels=(question.text or "",),
                size_hw=scene.image_rgb.shape[:2],
            )
            answers[number, place] = found
    files = write_pictures(tmp_path / "drawn", scenes, answers, answers)
    pairs = pictures_from_folder(tmp_path / "drawn")
    # Of every third scene the question with a box would be drawn.
    assert len(pairs) == 4
    assert len(files) == 1 + 2 * len(pairs)
    assert {pair.prompt for pair in pairs} <= {
        question.text for scene in scenes for question in scene.questions
    }
