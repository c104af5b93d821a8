"""``samforge compare``: accuracy of bundles on drawn scenes, in the protocol of the model card."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import samforge
from samforge.apps import cli
from samforge.apps.cli.data import DataOptions, data_from_text
from samforge.core.detections import Detections
from samforge.core.errors import SettingError
from samforge.core.images import RgbImage
from samforge.core.manifest import TextSpec
from samforge.core.timing import Timings
from samforge.measure import measure_segmenter
from samforge.models import tiny
from samforge.models.tiny.held_out import scene_prompts

Capture = pytest.CaptureFixture[str]


def test_a_bundle_is_measured(tiny_bundle: samforge.Bundle, capsys: Capture) -> None:
    words = ["compare", str(tiny_bundle.root), str(tiny_bundle.root), "--data", "scenes:3"]
    assert cli.main([*words, "--seed", "5", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    report = json.loads(out)
    assert (report["data"], report["seed"]) == ("scenes:3", 5)
    first, second = report["bundles"]
    assert (first["target"], first["precision"]) == ("onnxruntime", "fp32")
    accuracy = first["accuracy"]
    assert (accuracy["images"], accuracy["text"]["prompts"]) == (3, 6)
    assert accuracy["boxes"]["prompts"] == 6
    assert accuracy["boxes"]["f1"] > 0.5, "the trained model finds what a box shows"
    assert accuracy["boxes"]["mean_iou"] > 0.8
    assert accuracy["image_ms"] > 0
    for figures in ("text", "boxes"):
        assert accuracy[figures] == second["accuracy"][figures]


def test_people_get_a_table(tiny_bundle: samforge.Bundle, capsys: Capture) -> None:
    assert cli.main(["compare", str(tiny_bundle.root), "--data", "scenes:1"]) == 0
    out = capsys.readouterr().out
    for word in ("Accuracy on scenes:1", "presence", "onnxruntime", "fp32", "MiB", "ms per"):
        assert word in out


def test_every_scene_is_asked_two_phrases_and_two_boxes() -> None:
    for seed in range(40):
        scene = tiny.draw_scene(seed)
        prompts = scene_prompts(scene, seed)
        assert [prompt.has_boxes for prompt in prompts] == [False, False, True, True]
        assert prompts[2].text == "visual"
        for prompt in prompts[:2]:
            assert np.array_equal(prompt.targets, scene.matching(prompt.text))
        (labelled,) = tiny.labelled_scenes(1, first=seed)
        for prompt, question in zip(prompts, labelled.questions, strict=True):
            assert np.array_equal(question.masks, scene.masks[prompt.targets])
            assert question.text == (None if prompt.text == "visual" else prompt.text)
            assert (question.boxes_xyxy is not None) is prompt.has_boxes


def test_the_protocol_does_not_drift() -> None:
    """Figures of different versions compare only while the questions stay: change these with it."""
    asked = [
        prompt.text for seed in (0, 1, 2) for prompt in scene_prompts(tiny.draw_scene(seed), seed)
    ]
    assert asked == [
        "white object",
        "white cross",
        "visual",
        "visual",
        "green cross",
        "black cross",
        "visual",
        "visual",
        "object",
        "black circle",
        "visual",
        "visual",
    ]


def test_the_seed_is_the_first_scene() -> None:
    (second,) = islice(data_from_text("scenes:10").images(), 1, 2)
    (first,) = islice(data_from_text("scenes:1", DataOptions(seed=1)).images(), 1)
    assert first.name == second.name == "scene 1"
    assert np.array_equal(first.image_rgb, second.image_rgb)


class _Knowing:
    """A segmenter that is told the answers, and leaves out every second mask by box."""

    def __init__(self) -> None:
        self.scenes = iter(tiny.labelled_scenes(4))

    def encode(self, image: RgbImage, *, timings: Timings) -> object:
        self.questions = next(self.scenes).questions
        timings.add("vision", 10.0)
        return image

    def predict(self, encoded: RgbImage, *, timings: Timings, **asked: object) -> Detections:
        timings.add("detector", 2.0)
        text, boxes = asked["text"], cast("Any", asked.get("boxes_xyxy"))
        if boxes is None:
            assert isinstance(text, list)
            by_text = {q.text or "": q.masks for q in self.questions if q.boxes_xyxy is None}
            labels = tuple(phrase for phrase, masks in by_text.items() for _ in masks)
            return _detections(np.concatenate(list(by_text.values())), labels)
        mine = [
            q
            for q in self.questions
            if q.text == text and q.boxes_xyxy is not None and np.array_equal(q.boxes_xyxy, boxes)
        ]
        masks = mine[0].masks[::2]
        return _detections(masks, ("visual",) * len(masks))


def _detections(masks: np.ndarray, labels: tuple[str, ...]) -> Detections:
    return Detections(
        masks=masks,
        boxes_xyxy=np.zeros((len(masks), 4), np.float32),
        scores=np.ones(len(masks), np.float32),
        labels=labels,
        size_hw=masks.shape[1:],
    )


def test_right_answers_score_1_and_missing_ones_less() -> None:
    seen: list[None] = []
    figures = measure_segmenter(
        _Knowing(),  # type: ignore[arg-type]
        tiny.labelled_scenes(4),
        done=lambda: seen.append(None),
    )
    assert figures.text is not None
    assert figures.boxes is not None
    assert (figures.text.f1, figures.text.mean_iou, figures.text.presence) == (1.0, 1.0, 1.0)
    assert figures.boxes.mean_iou == 1.0
    assert figures.boxes.f1 < 1.0
    assert figures.boxes.false_positives == 0
    assert (figures.images, len(seen)) == (4, 4)
    assert figures.image_ms == pytest.approx(10 + 3 * 2)


def test_a_model_of_another_vocabulary_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    tiny_bundle: samforge.Bundle,
    tmp_path: Path,
    capsys: Capture,
) -> None:
    """Told before anything is measured."""
    from dataclasses import replace

    from samforge.models.sam3.byte_tokenizer import byte_tokenizer

    (tmp_path / "tokenizer").mkdir()
    byte_tokenizer(49408).save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    text = TextSpec(context=32, pad_id=0, tokenizer="tokenizer/tokenizer.json", synthetic=True)
    other = replace(
        tiny_bundle,
        root=tmp_path,
        manifest=replace(tiny_bundle.manifest, model="facebook/sam3", text=text),
    )
    monkeypatch.setattr(samforge, "open_bundle", lambda path: other, raising=False)
    assert cli.main(["compare", "sam3"]) == 2
    err = capsys.readouterr().err
    assert f"SettingError: {tmp_path} holds the model 'facebook/sam3', which reads any word" in err
    assert "Compare bundles of the tiny model" in err


@pytest.mark.parametrize("text", ["scenes:0", "scenes:", "scenes", "scenes:-3", "scenes:x"])
def test_a_number_of_scenes_is_wanted(text: str) -> None:
    with pytest.raises(SettingError, match="Give a number of scenes from 1 up: scenes:1000"):
        data_from_text(text)


def test_an_unknown_source_lists_the_known(tiny_bundle: samforge.Bundle, capsys: Capture) -> None:
    assert cli.main(["compare", str(tiny_bundle.root), "--data", "voc:val"]) == 2
    err = capsys.readouterr().err
    assert "--data is 'voc:val', and there is no source 'voc'. Known: scenes:N" in err
    assert "coco:FILE.json: labelled images with masks in COCO's format." in err


def test_a_damaged_bundle_stops_it(bundle_copy: Path, capsys: Capture) -> None:
    (bundle_copy / "parts/vision/vision.onnx").unlink()
    assert cli.main(["compare", str(bundle_copy)]) == 5
    assert "vision.onnx is missing in" in capsys.readouterr().err
