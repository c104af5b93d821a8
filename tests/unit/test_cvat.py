"""CVAT's functions, against the types of cvat-sdk where it is installed."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from drawn_masks import drawn
from PIL import Image

from samforge.core.capabilities import POINTS, TEXT
from samforge.core.detections import Detections
from samforge.core.errors import MissingExtra, PromptError, SettingError
from samforge.integrations import cvat
from samforge.serving.asking import Ask

IMAGE = Image.new("RGB", (300, 200), "grey")


class Drawing:
    """A segmenter that draws what it is asked."""

    def __init__(self, parts: tuple[str, ...] = POINTS.parts) -> None:
        self.parts = parts
        self.encoded = 0
        self.thresholds: list[float] = []

    def encode(self, image: Image.Image) -> tuple[int, int]:
        self.encoded += 1
        return (image.height, image.width)

    def predict(self, image: Image.Image, *, text: Any, threshold: float) -> Detections:
        self.thresholds.append(threshold)
        return drawn(Ask(text=text, threshold=threshold), (image.height, image.width))

    def predict_objects(self, encoded: tuple[int, int], prompt: Any) -> Detections:
        return drawn(Ask(objects=(prompt,)), encoded)


def context(threshold: float | None = None, *, polygons: bool = False) -> Any:
    return SimpleNamespace(frame_name="a.png", conf_threshold=threshold, conv_mask_to_poly=polygons)


@pytest.fixture
def sdk() -> Any:
    return pytest.importorskip("cvat_sdk.auto_annotation", reason="cvat-sdk is not installed")


@pytest.fixture
def detection(sdk: Any) -> cvat.Detection:
    labels = {"round": ["red circle"], "star": ["star", "cat"]}
    return cvat.Detection(Drawing(), labels)  # type: ignore[arg-type]


def test_labels_have_numbers(detection: cvat.Detection) -> None:
    assert [(one.name, one.id) for one in detection.spec.labels] == [("round", 1), ("star", 2)]


def test_masks(detection: cvat.Detection) -> None:
    from cvat_sdk.masks import decode_mask

    shapes = detection.detect(context(), IMAGE)
    assert [(one.label_id, str(one.type), one.frame) for one in shapes] == [
        (1, "mask", 0),
        (2, "mask", 0),
        (2, "mask", 0),
    ]
    expected = drawn(Ask(text=("red circle", "star", "cat")), (200, 300)).masks.dense()
    for shape, mask in zip(shapes, expected, strict=True):
        decoded = decode_mask(shape.points, image_width=300, image_height=200)
        assert (decoded == mask).all()


def test_the_threshold_is_cvats(detection: cvat.Detection) -> None:
    assert len(detection.detect(context(0.1), IMAGE)) == 4  # the cat too
    assert len(detection.detect(context(0.85), IMAGE)) == 1
    assert detection._segmenter.thresholds == [0.1, 0.85]  # type: ignore[attr-defined]


def test_polygons(detection: cvat.Detection) -> None:
    shapes = detection.detect(context(polygons=True), IMAGE)
    assert {str(one.type) for one in shapes} == {"polygon"}
    ring = np.array(shapes[0].points).reshape(-1, 2)
    assert (ring.min(axis=0) >= [69, 119]).all()
    assert (ring.max(axis=0) <= [131, 181]).all()  # 0.5, 0.75 and 0.15 of 200
    assert {hasattr(one, "group") for one in shapes} == {False}


def prompts(pos: Any = (), neg: Any = (), box: Any = None) -> Any:
    return SimpleNamespace(pos_points=pos, neg_points=neg, bounding_box=box)


def test_interaction(sdk: Any) -> None:
    from cvat_sdk.masks import decode_mask

    one = cvat.Interaction(Drawing())  # type: ignore[arg-type]
    encoded = one.preprocess_image(None, IMAGE)
    (shape,) = one.detect(None, encoded, prompts([(100.0, 100.0)], [(110.0, 100.0)]))
    mask = decode_mask(shape.points, image_width=300, image_height=200)
    assert mask[100, 85]
    assert not mask[100, 112]
    assert [(a.spec_id, a.value) for a in shape.attributes] == [(0, "0.9500")]
    (shape,) = one.detect(None, encoded, prompts(box=((20.0, 30.0), (60.0, 80.0))))
    assert decode_mask(shape.points, image_width=300, image_height=200).sum() == 40 * 50
    assert one.detect(None, encoded, prompts(neg=[(1.0, 1.0)])) == []
    assert one._segmenter.encoded == 1  # type: ignore[attr-defined]
    with pytest.raises(PromptError, match="neither a point nor a box"):
        one.detect(None, encoded, prompts())


def test_interaction_needs_clicks(sdk: Any) -> None:
    with pytest.raises(SettingError, match="takes no clicks"):
        cvat.Interaction(Drawing(TEXT.parts))  # type: ignore[arg-type]


@pytest.mark.parametrize("labels", [{}, {"a": []}, {"a": ["x"], "b": ["x"]}])
def test_labels_without_phrases(sdk: Any, labels: dict[str, list[str]]) -> None:
    with pytest.raises(SettingError, match="each to one label"):
        cvat.Detection(Drawing(), labels)  # type: ignore[arg-type]


def test_labels_are_read() -> None:
    found = cvat.labels_from_text("person, vehicle=car,vehicle = pick-up truck")
    assert found == {"person": ["person"], "vehicle": ["car", "pick-up truck"]}
    with pytest.raises(SettingError, match="no labels"):
        cvat.labels_from_text(" , ")


def test_without_the_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cvat_sdk", None)
    monkeypatch.setitem(sys.modules, "cvat_sdk.auto_annotation", None)
    with pytest.raises(MissingExtra, match=r"samforge\[cvat\]"):
        cvat.Detection(Drawing(), {"a": ["a"]})  # type: ignore[arg-type]


def test_another_kind() -> None:
    with pytest.raises(SettingError, match="kind is 'tracking'"):
        cvat.create("nowhere", "a", kind="tracking")  # type: ignore[arg-type]
