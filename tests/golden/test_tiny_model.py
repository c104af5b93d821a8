"""The shipped weights, through the whole chain, still answer as the model card says.

A few scenes stand for the thousand of the card (``benchmarks/tiny_model``), whose F1 is 0.995 by
phrases and 0.994 by boxes: these floors have room for a sample and none for a mistake.
"""

from __future__ import annotations

import numpy as np
import pytest

import samforge
from samforge.measure.accuracy import accuracy_from_matches, match_masks
from samforge.measure.segmentation import SegmenterAccuracy, measure_segmenter
from samforge.models import tiny

SCENES = 60


@pytest.fixture(scope="module")
def figures(tiny_bundle: samforge.Bundle) -> SegmenterAccuracy:
    """Measured on scenes that training never saw."""
    return measure_segmenter(samforge.load(tiny_bundle), tiny.labelled_scenes(SCENES))


def test_phrases(figures: SegmenterAccuracy) -> None:
    assert figures.images == SCENES
    assert figures.text is not None
    assert figures.text.prompts == 2 * SCENES
    assert figures.text.f1 >= 0.97
    assert figures.text.mean_iou >= 0.955
    assert figures.text.presence >= 0.98


def test_boxes(figures: SegmenterAccuracy) -> None:
    assert figures.boxes is not None
    assert figures.boxes.prompts == 2 * SCENES
    assert figures.boxes.f1 >= 0.95
    assert figures.boxes.mean_iou >= 0.955


@pytest.mark.slow
def test_a_thousand_scenes(tiny_bundle: samforge.Bundle) -> None:
    """The floors that training had to reach."""
    figures = measure_segmenter(samforge.load(tiny_bundle), tiny.labelled_scenes(1000))
    assert figures.text is not None
    assert figures.boxes is not None
    assert figures.text.f1 >= 0.995
    assert figures.text.mean_iou >= 0.955
    assert figures.text.presence >= 0.997
    assert figures.boxes.f1 >= 0.99


def test_the_weights_are_those_of_the_card(tiny_bundle: samforge.Bundle) -> None:
    assert tiny_bundle.manifest.parents["weights"] == tiny.weights_digest()
    assert tiny.WEIGHTS_PATH.stat().st_size <= 16 * 2**20


@pytest.fixture(scope="module")
def segmenter(tiny_bundle: samforge.Bundle) -> samforge.Segmenter:
    return samforge.load(tiny_bundle)


def test_absent_concepts_are_not_found(segmenter: samforge.Segmenter) -> None:
    asked, found = 0, 0
    for seed in range(SCENES, SCENES + 12):
        scene = tiny.draw_scene(seed)
        phrases = list(scene.absent_phrases())[::12]
        detections = segmenter.predict(scene.image, text=phrases)
        asked += len(phrases)
        found += len(set(detections.labels))
    assert asked > 40
    assert found <= asked * 0.03


def test_a_negative_box_takes_its_kind_away(segmenter: samforge.Segmenter) -> None:
    matches = []
    for seed in range(SCENES, SCENES + 30):
        scene = tiny.draw_scene(seed)
        left = np.setdiff1d(scene.matching("object"), scene.alike(0))
        if len(left):
            detections = segmenter.predict(
                scene.image, text="object", boxes_xyxy=scene.boxes_xyxy[:1], box_labels=[0]
            )
            matches.append(match_masks(detections.masks, scene.masks[left]))
    assert len(matches) > 10
    assert accuracy_from_matches(matches).f1 >= 0.85
