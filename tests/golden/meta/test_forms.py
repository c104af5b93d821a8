"""Every form that a part goes through on its way into a bundle computes what Meta's code computes.

Eager, exported, fused, and as ONNX graph (of the fused program, as a build makes it) in ONNX
Runtime.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.golden.meta.arrays import (
    BOX_CASES,
    TEXT_CASES,
    Arrays,
    Sessions,
    ask,
    ask_case,
    beyond,
    beyond_case,
    beyond_detections,
    boxes_in_pixels,
    exemplars_of,
    ids_of,
    images_of,
    kept_features,
    pair,
    picture_of,
    run,
    wanted,
)

from samforge.backends import backend_from_name
from samforge.backends.torch import TorchSession
from samforge.core.session import Session
from samforge.models.part import example_inputs
from samforge.runtime import Segmenter
from samforge.transform.export import TRACED_SIZES, exported_from_part
from samforge.transform.fuse import fuse
from samforge.transform.onnx.convert import onnx_from_exported, save_onnx

FORMS = ("eager", "exported", "fused", "onnxruntime")
SLOW = "onnxruntime"
"""To convert the detector with boxes takes 45 seconds, as long as all the rest."""


@pytest.fixture(scope="module")
def form(
    eager: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Session]:
    """What runs a part in a form."""
    folder = tmp_path_factory.mktemp("forms")

    @lru_cache
    def program(kind: str, name: str) -> Any:
        if kind == "fused":
            return fuse(program("exported", name), target="onnxruntime").program
        part = eager(name).part
        inputs = example_inputs(part.inputs, TRACED_SIZES, vocabulary=49408, eos_id=49407)
        return exported_from_part(part, inputs)

    @lru_cache
    def make(kind: str, name: str) -> Session:
        spec = eager(name).spec
        if kind == "eager":
            return eager(name)
        if kind != "onnxruntime":
            return TorchSession(program(kind, name), spec, name)
        path: Path = folder / f"{name}.onnx"
        save_onnx(onnx_from_exported(program("fused", name), spec), path)
        backend = backend_from_name("onnxruntime")
        return backend.session_from_artifact(path, spec, threads=1)

    return make


@pytest.fixture(params=FORMS)
def sessions(request: pytest.FixtureRequest, form: Callable[..., Session]) -> Sessions:
    """The parts in each form, for tests that take no boxes."""
    return partial(form, request.param)


@pytest.fixture(
    params=[pytest.param(name, marks=pytest.mark.slow if name == SLOW else ()) for name in FORMS]
)
def with_boxes(request: pytest.FixtureRequest, form: Callable[..., Session]) -> Sessions:
    """The parts in each form, for tests with boxes."""
    return partial(form, request.param)


def test_vision(sessions: Sessions, arrays: Arrays) -> None:
    features = run(sessions("vision"), images_of(arrays["pictures"]))
    maps = kept_features(features)
    assert beyond(maps, wanted(arrays, "vision", maps)) == {}
    for case in TEXT_CASES:
        token = {"geometry_tokens": features["class_token"][int(arrays[f"{case}/picture"])]}
        assert beyond(token, wanted(arrays, case, token)) == {}


def test_text(sessions: Sessions, arrays: Arrays) -> None:
    cases = (*TEXT_CASES, *BOX_CASES)
    input_ids = ids_of(arrays, cases)
    answer = run(sessions("text"), {"input_ids": input_ids})
    assert np.array_equal(answer["text_mask"], input_ids != 0)
    for case, features in zip(cases, answer["text_features"], strict=True):
        found = {"text_features": features}  # what padding becomes, too
        assert beyond(found, wanted(arrays, case, found)) == {}


@pytest.mark.parametrize("case", TEXT_CASES)
def test_a_phrase(sessions: Sessions, arrays: Arrays, case: str) -> None:
    assert beyond_case(ask_case(sessions, arrays, case), arrays, case) == {}


@pytest.mark.parametrize("case", BOX_CASES)
def test_boxes(with_boxes: Sessions, arrays: Arrays, case: str) -> None:
    assert beyond_case(ask_case(with_boxes, arrays, case), arrays, case) == {}


def test_several_images_and_phrases_in_one_call(sessions: Sessions, arrays: Arrays) -> None:
    phrases = ("text_cat", "text_bus", "text_person")
    answer = ask(sessions, arrays["pictures"], ids_of(arrays, phrases))
    assert answer["pred_logits"].shape == (2, 3, 20)
    for prompt, case in enumerate(phrases):
        assert beyond_case(pair(answer, 0, prompt), arrays, case) == {}
    assert beyond_case(pair(answer, 1, 0), arrays, "text_cat_picture1") == {}


def test_several_images_and_boxes_in_one_call(with_boxes: Sessions, arrays: Arrays) -> None:
    cases = (("text_mixed", "boxes_mixed"), ("text_mixed_picture1", "boxes_mixed_picture1"))
    exemplars = [[exemplars_of(arrays, case) for case in row] for row in cases]
    answer = ask(
        with_boxes,
        arrays["pictures"],
        ids_of(arrays, cases[0]),
        *(np.array([[pair[i] for pair in row] for row in exemplars]) for i in range(2)),
    )
    for picture, row in enumerate(cases):
        for prompt, case in enumerate(row):
            assert beyond_case(pair(answer, picture, prompt), arrays, case) == {}


def test_a_batch_of_different_counts_of_boxes(with_boxes: Sessions, arrays: Arrays) -> None:
    """Meta pairs every picture with a prompt of its own, samforge with all: theirs are on the
    diagonal. The first has no box at all, which there is a phrase like any other."""
    boxes, labels = exemplars_of(arrays, "batch")
    assert (labels == -10).sum(1).tolist() == [3, 2, 0]
    answer = ask(
        with_boxes,
        arrays["pictures"][arrays["batch/picture"]],
        arrays["batch/input_ids"],
        np.stack([boxes] * 3),
        np.stack([labels] * 3),
    )
    for row in range(3):
        assert beyond_case(pair(answer, row, row), arrays, "batch", row) == {}


def test_detections_of_a_phrase(
    sessions: Sessions, segmenter: Callable[..., Segmenter], arrays: Arrays
) -> None:
    whole = segmenter(sessions, boxes=False)
    found = whole.predict(
        picture_of(whole, arrays),
        text="yellow school bus",
        threshold=float(arrays["processor/text/threshold"]),
    )
    assert found.labels == ("yellow school bus",) * 11
    assert beyond_detections(found, arrays, "processor/text") == {}


def test_detections_of_boxes(
    with_boxes: Sessions, segmenter: Callable[..., Segmenter], arrays: Arrays
) -> None:
    whole = segmenter(with_boxes, boxes=True)
    found = whole.predict(
        picture_of(whole, arrays),
        boxes_xyxy=boxes_in_pixels(arrays),
        box_labels=[1, 0, 1],
        threshold=float(arrays["processor/boxes/threshold"]),
    )
    assert found.labels == ("visual",) * 13
    assert beyond_detections(found, arrays, "processor/boxes") == {}
