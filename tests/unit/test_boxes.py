"""Boxes that are given out can be given back, whatever was done to them on the way."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import samforge
from samforge.apps.cli.predict import box_text
from samforge.core.boxes import clipped_boxes
from samforge.core.errors import PromptError
from samforge.core.masks import Masks
from samforge.runtime import RawDetections, Thresholds, detections_from_raw
from samforge.runtime.prompts import exemplars_from_boxes
from samforge.workflows.pointing import box_from_text

WIDE = (48, 64)
CLIPPED: dict[str, tuple[list[float], list[float]]] = {
    "inside": ([1, 2, 3, 4.5], [1, 2, 3, 4.5]),
    "over the left": ([-3, 2, 3, 4], [0, 2, 3, 4]),
    "over the top": ([1, -0.5, 3, 4], [1, 0, 3, 4]),
    "over the right": ([60, 2, 64.01, 4], [60, 2, 64, 4]),
    "over the bottom": ([1, 40, 3, 50], [1, 40, 3, 48]),
    "over all edges": ([-9, -9, 99, 99], [0, 0, 64, 48]),
    "infinite": ([-np.inf, 0, np.inf, 4], [0, 0, 64, 4]),
    "left of it": ([-9, 2, -3, 4], [0, 2, 1, 4]),
    "right of it": ([70, 2, 80, 4], [63, 2, 64, 4]),
    "below it": ([1, 50, 3, 60], [1, 47, 3, 48]),
    "no width": ([5.5, 2, 5.5, 4], [5, 2, 6, 4]),
    "the wrong way round": ([8, 2, 6, 4], [6, 2, 7, 4]),
    "a point in the corner": ([64, 48, 64, 48], [63, 47, 64, 48]),
    "narrower than a pixel": ([5.25, 2, 5.5, 4], [5.25, 2, 5.5, 4]),
}


@pytest.mark.parametrize("name", CLIPPED)
def test_boxes_are_clipped(name: str) -> None:
    box, expected = CLIPPED[name]
    assert clipped_boxes(np.array([box], np.float32), WIDE).tolist() == [expected]


SIZES = st.tuples(st.integers(1, 13_000), st.integers(1, 13_000))


@settings(max_examples=300, deadline=None)
@given(
    size_hw=SIZES,
    fractions=st.tuples(*[st.floats(-0.5, 1.5, width=32)] * 4),
)
def test_what_is_given_out_is_taken_back(
    size_hw: tuple[int, int], fractions: tuple[float, float, float, float]
) -> None:
    height, width = size_hw
    raw = np.array([fractions], np.float32) * np.array([width, height] * 2, np.float32)
    given = clipped_boxes(raw, size_hw)
    exemplars_from_boxes(given, None, size_hw)
    exemplars_from_boxes(json.loads(json.dumps(given.tolist())), None, size_hw)
    left, top, right, bottom = given[0].tolist()
    bbox = [left, top, right - left, bottom - top]
    back = [bbox[0], bbox[1], bbox[0] + bbox[2], bbox[1] + bbox[3]]
    exemplars_from_boxes([back], None, size_hw)
    narrow = np.array(bbox, np.float32)  # as a file in float32 has it
    exemplars_from_boxes([[*narrow[:2], *(narrow[:2] + narrow[2:])]], None, size_hw)
    if min(right - left, bottom - top) > 1e-5:
        exemplars_from_boxes([box_from_text(box_text(given[0].tolist()))], None, size_hw)


def test_exemplars_are_inside_after_rounding() -> None:
    exemplars = exemplars_from_boxes([[-1e-4, 0, 640.0001, 480.0001]], None, (480, 640))
    assert exemplars.boxes_xyxy.tolist() == [[0, 0, 640, 480]]
    for box in ([-0.1, 0, 4, 4], [0, 0, 640.1, 4], [0, 0, 4, 481]):
        with pytest.raises(PromptError, match="leaves the image"):
            exemplars_from_boxes([box], None, (480, 640))
    for box in ([640, 0, 640.0005, 4], [0, -1e-131, 208, 9e-76]):  # float32 has no 9e-76
        with pytest.raises(PromptError, match="no area inside"):
            exemplars_from_boxes([box], None, (480, 640))


def test_detections_lie_inside_their_picture() -> None:
    rng = np.random.default_rng(0)
    raw = RawDetections(
        logits=np.full(50, 3, np.float32),
        boxes=rng.uniform(-0.3, 1.3, (50, 4)).astype(np.float32),
        masks=np.zeros((50, 4, 4), np.float32),
        presence_logit=3.0,
    )
    found = detections_from_raw(raw, label="x", size_hw=WIDE, thresholds=Thresholds(score=0.1))
    _assert_inside(found)


def test_boxes_on_the_device_lie_inside_too() -> None:
    from samforge.runtime.device.results import Found, detections_from_found

    boxes = np.array([[[[-0.1, 0.2, 1.2, 0.4], [1.1, 1.1, 1.2, 1.3]]]], np.float32)
    found = detections_from_found(
        Found(
            scores=np.ones((1, 1, 2), np.float32), boxes=boxes, finite=np.ones((1, 1, 2), np.bool_)
        ),
        Masks.from_dense(np.zeros((2, *WIDE), np.bool_)),
        {(0, 0): np.array([0, 1])},
        image=0,
        labels=("x",),
    )
    _assert_inside(found)


def _assert_inside(found: samforge.Detections) -> None:
    height, width = found.size_hw
    for annotation in found.to_coco():
        left, top, across, down = annotation["bbox"]
        assert 0 <= left < left + across <= width
        assert 0 <= top < top + down <= height
    exemplars_from_boxes(found.boxes_xyxy, None, found.size_hw)


def test_a_segmenter_takes_its_own_boxes(fake_bundle: Callable[..., samforge.Bundle]) -> None:
    segmenter = samforge.load(fake_bundle())
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    found = segmenter.predict(image, text="star", threshold=0.0)
    assert len(found) > 0
    _assert_inside(found)
