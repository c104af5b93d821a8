"""``samforge compare``: accuracy of bundles on drawn scenes, in the protocol of the model card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from made_up import reseal, stamp

import samforge
from samforge.apps import cli
from samforge.core.detections import Detections
from samforge.core.errors import SettingError
from samforge.core.files import sha256_of
from samforge.core.images import RgbImage
from samforge.core.labelled import LabelledImage, Question
from samforge.core.manifest import FileEntry, TextSpec
from samforge.core.rle import segmentation_from_mask
from samforge.core.timing import Timings
from samforge.measure import measure_segmenter
from samforge.measure.asking import Asked
from samforge.measure.segmentation import AccuracyTally, asked_of_both
from samforge.measure.sums import COLUMNS, sums_from_tallies
from samforge.measure.verdict import ANSWERED
from samforge.media import write_png
from samforge.models import tiny
from samforge.models.tiny.held_out import scene_prompts
from samforge.workflows.compare import compare
from samforge.workflows.labelled_data import DataOptions, data_from_text

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


@pytest.fixture(scope="module")
def rough_bundle(
    tiny_bundle: samforge.Bundle, tmp_path_factory: pytest.TempPathFactory
) -> samforge.Bundle:
    """The tiny bundle with 7 levels for the weights of its image encoder: it calls itself int8."""
    import onnx
    from onnx import numpy_helper

    root = Path(shutil.copytree(tiny_bundle.root, tmp_path_factory.mktemp("rough") / "rough"))
    name = "parts/vision/vision.onnx"
    graph = onnx.load(root / name)
    for weight in graph.graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype == np.float32 and values.ndim > 1:
            step = np.abs(values).max() / 3
            rounded = (np.round(values / step) * step).astype(np.float32)
            weight.CopyFrom(numpy_helper.from_array(rounded, weight.name))
    onnx.save(graph, root / name)
    recipe = {**tiny_bundle.manifest.recipe, "precision": "int8"}
    manifest = replace(tiny_bundle.manifest, recipe=recipe)
    for part, entry in manifest.parts.items():
        stamp(root / entry.artifact, manifest, part, size=None)
    reseal(root, manifest)
    return samforge.open_bundle(root)


def test_bundles_are_compared_with_the_reference(
    tiny_bundle: samforge.Bundle, rough_bundle: samforge.Bundle, capsys: Capture
) -> None:
    words = ["compare", str(rough_bundle.root), "--reference", str(tiny_bundle.root)]
    assert cli.main([*words, "--data", "scenes:3", "--gate", "--json"]) == 7
    report = json.loads(capsys.readouterr().out)
    first, second = report["bundles"]
    assert [row["bundle"] for row in report["bundles"]] == [
        str(tiny_bundle.root),
        str(rough_bundle.root),
    ]
    assert (first["reference"], second["reference"]) == (True, False)
    assert first["accuracy"]["fidelity"] is None
    assert first["cgf1_drop"] is None
    fidelity, cgf1 = second["accuracy"]["fidelity"], second["accuracy"]["cgf1"]
    assert fidelity["questions"] == 12
    assert 0.5 < fidelity["mask_iou"] < 0.98
    assert fidelity["score_shift_max"] > 0.001
    assert second["cgf1_drop"] == first["accuracy"]["cgf1"]["cgf1"] - cgf1["cgf1"]
    assert cgf1["cgf1"] == pytest.approx(cgf1["pmf1"] * cgf1["il_mcc"])
    assert len(cgf1["pmf1_at"]) == 10
    # One object for machines also when a gate fails.
    assert not report["ok"]
    assert report["error"]["kind"] == "FidelityError"
    assert report["error"]["exit_code"] == 7
    assert first["verdict"] is None
    judged = {one["gate"]: one for one in second["verdict"]["judged"]}
    assert judged["mask_iou"]["interval"]["value"] == pytest.approx(fidelity["mask_iou"])
    assert judged["mask_iou"]["limit"] == 0.98
    objects = judged["agreement"]["interval"]
    both = fidelity["reference_objects"] + fidelity["objects"]
    assert objects["value"] == pytest.approx(2 * fidelity["pairs"] / both)
    # An interval of three pictures reaches from the worst to the best of them.
    assert objects["low"] < objects["value"] < objects["high"] < 0.95
    assert judged["cgf1_drop"]["interval"]["value"] == pytest.approx(second["cgf1_drop"])
    evidence = second["verdict"]["evidence"]
    assert (evidence["images"], evidence["questions"]) == (3, 12)
    assert evidence["objects"] == fidelity["reference_objects"]
    said = (
        f"agreement: F1 of the objects is {objects['value']:.4f} "
        f"({objects['low']:.4f} to {objects['high']:.4f}), the gate is 0.95"
    )
    assert said in report["failed_gates"][0]
    assert report["error"]["message"] == "\n".join(report["failed_gates"])


def test_every_bundle_runs_once(tiny_bundle: samforge.Bundle) -> None:
    """The reference too, however many bundles are compared with it."""
    data = data_from_text("scenes:1")
    runs: list[None] = []

    def images() -> Iterator[LabelledImage]:
        runs.append(None)
        return data.images()

    rows = compare([tiny_bundle] * 3, replace(data, images=images), done=lambda: None)
    assert len(runs) == 3
    assert [row.reference for row in rows] == [True, False, False]
    assert [row.accuracy.fidelity is None for row in rows] == [True, False, False]


def test_a_bundle_that_equals_the_reference_holds_every_gate(
    tiny_bundle: samforge.Bundle, bundle_copy: Path, capsys: Capture
) -> None:
    words = ["compare", str(tiny_bundle.root), str(bundle_copy), "--data", "scenes:20"]
    assert cli.main([*words, "--gate"]) == 0
    out = capsys.readouterr().out
    assert "Fidelity to" in out
    # Five figures of agreement, then shifts and a drop of nothing.
    row = next(line for line in out.splitlines() if line.count("1.0000") == 5)
    assert row.count("0.0000") == 4
    assert f"Every bundle holds its gates against {tiny_bundle.root}." in out
    assert "20 pictures, 80 questions, " in out
    rows = [line.split("│") for line in out.splitlines() if line.count("yes") == 1]
    assert [row[1].strip() for row in rows] == list(ANSWERED)
    assert [row[2].strip() for row in rows] == ["1.0000"] * 3 + ["0.0000"] * 2 + [
        "1.0000",
        "0.0000",
    ]


def test_too_little_data_proves_nothing_and_a_recipe_may_say_that_it_is_enough(
    tiny_bundle: samforge.Bundle, bundle_copy: Path, capsys: Capture
) -> None:
    """As a build: it holds on three pictures and may fail on the fourth."""
    words = ["compare", str(tiny_bundle.root), str(bundle_copy), "--data", "scenes:3", "--gate"]
    assert cli.main(words) == 7
    err = " ".join(capsys.readouterr().err.split())
    assert "may hold its gates, and what was asked is too little to tell" in err
    assert "3 pictures, at least 8 are needed" in err
    assert "Give more data: --data scenes:1000" in err
    recipe = tiny_bundle.manifest.recipe
    gates = {**cast("dict[str, Any]", recipe["gates"]), "weak_evidence": True}
    reseal(bundle_copy, replace(tiny_bundle.manifest, recipe={**recipe, "gates": gates}))
    assert cli.main([*words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["failed_gates"] == []
    assert report["notes"][0].startswith(f"{bundle_copy}: Weak evidence (3 pictures, 12 questions")


def test_pictures_that_one_of_two_failed_on_count_for_neither() -> None:
    def tally(images: list[int], *, compared: bool) -> AccuracyTally:
        own = AccuracyTally(images=len(images))
        for number in images:
            for place in range(2):
                found = _detections(np.ones((1, 4, 4), np.bool_), ("a",))
                question = Question(text="a", masks=np.ones((1, 4, 4), np.bool_))
                asked = Asked(key=(number, place), question=question, found=found)
                own.add(number, asked, found if compared and number != 3 else None)
        return own

    # The reference failed on 3: no answer of it to compare with. The other failed on 1.
    before, after = asked_of_both(
        tally([0, 1, 2, 4], compared=False), tally([0, 2, 3, 4], compared=True)
    )
    assert (before.images, after.images) == (3, 3)
    for own in (before, after):
        asked = [(one.image, one.place) for one in own.answered]
        assert asked == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    sums = sums_from_tallies(before, after)
    assert sums[:, COLUMNS.index("questions")].tolist() == [2, 2, 2]


def test_a_failed_gate_shows_the_tables_first(
    tiny_bundle: samforge.Bundle, rough_bundle: samforge.Bundle, capsys: Capture
) -> None:
    words = ["compare", str(tiny_bundle.root), str(rough_bundle.root), "--data", "scenes:2"]
    assert cli.main([*words, "--gate"]) == 7
    out, err = capsys.readouterr()
    assert "Accuracy on scenes:2" in out
    assert "Fidelity to" in out
    assert "Gates of" in out
    assert f"FidelityError: {rough_bundle.root}: int8 against the reference does not hold" in err


def test_a_gate_needs_two_bundles(tiny_bundle: samforge.Bundle, capsys: Capture) -> None:
    assert cli.main(["compare", str(tiny_bundle.root), "--gate"]) == 2
    assert "--gate compares bundles with a reference, got one bundle" in capsys.readouterr().err


@pytest.fixture
def coco_scenes(tmp_path: Path) -> Path:
    """Four drawn scenes as a COCO data set: every colour and shape that occurs is a category."""
    ids: dict[str, int] = {}
    table: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": []}
    for number in range(4):
        scene = tiny.draw_scene(number)
        write_png(tmp_path / f"{number}.png", scene.image)
        table["images"].append({"id": number, "file_name": f"{number}.png"})
        for i, mask in enumerate(scene.masks):
            name = f"{scene.colours[i]}_{scene.shapes[i]}"
            table["annotations"].append(
                {
                    "image_id": number,
                    "category_id": ids.setdefault(name, len(ids)),
                    "segmentation": segmentation_from_mask(mask),
                }
            )
    path = tmp_path / "scenes.json"
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    path.write_text(json.dumps(table | {"categories": categories}))
    return path


def test_a_coco_file_is_measured(
    tiny_bundle: samforge.Bundle, coco_scenes: Path, capsys: Capture
) -> None:
    words = ["compare", str(tiny_bundle.root), "--data", f"coco:{coco_scenes}", "--json"]
    assert cli.main([*words, "--limit", "3"]) == 0
    accuracy = json.loads(capsys.readouterr().out)["bundles"][0]["accuracy"]
    assert accuracy["images"] == 3
    assert accuracy["boxes"]["prompts"] == 3
    assert accuracy["text"]["f1"] > 0.9, "the phrases are those the model knows"
    assert accuracy["cgf1"]["mcc_defined"]
    assert accuracy["cgf1"]["cgf1"] > 0.6


def test_words_that_the_tiny_model_does_not_know_are_refused(
    tiny_bundle: samforge.Bundle, coco_scenes: Path, capsys: Capture
) -> None:
    coco_scenes.write_text(coco_scenes.read_text().replace("_circle", " giraffe"))
    assert cli.main(["compare", str(tiny_bundle.root), "--data", f"coco:{coco_scenes}"]) == 2
    err = capsys.readouterr().err
    assert "asks for giraffe and more. Compare it on drawn scenes: --data scenes:1000." in err


def test_options_that_do_not_belong_to_the_data(
    tiny_bundle: samforge.Bundle, tmp_path: Path, capsys: Capture
) -> None:
    words = ["compare", str(tiny_bundle.root), "--images", str(tmp_path)]
    assert cli.main(words) == 2
    assert "Give it with --data coco:FILE.json." in capsys.readouterr().err
    assert cli.main([*words, "--data", "coco:"]) == 2
    assert "Give a COCO file: coco:annotations.json" in capsys.readouterr().err


def test_phrases_that_are_all_present_leave_cgf1_undefined(
    tiny_bundle: samforge.Bundle, coco_scenes: Path, capsys: Capture
) -> None:
    table = json.loads(coco_scenes.read_text())
    names = {one["id"]: one["name"] for one in table["categories"]}
    first = table["annotations"][0]
    table["images"] = [{"id": 0, "file_name": "0.png", "text_input": names[first["category_id"]]}]
    same = [one for one in table["annotations"] if one["image_id"] == 0]
    table["annotations"] = [one for one in same if one["category_id"] == first["category_id"]]
    coco_scenes.write_text(json.dumps(table))
    assert cli.main(["compare", str(tiny_bundle.root), "--data", f"coco:{coco_scenes}"]) == 0
    assert "cgF1 is 0: it needs phrases that are present and phrases that are absent" in (
        capsys.readouterr().err
    )


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
    from samforge.models.sam3.byte_tokenizer import byte_tokenizer

    (tmp_path / "tokenizer").mkdir()
    name = "tokenizer/tokenizer.json"
    byte_tokenizer(49408).save(str(tmp_path / name))
    text = TextSpec(context=32, pad_id=0, tokenizer=name, synthetic=True)
    size = (tmp_path / name).stat().st_size
    listed = {name: FileEntry(sha256=sha256_of(tmp_path / name), bytes=size)}
    manifest = tiny_bundle.manifest
    other = replace(
        tiny_bundle,
        root=tmp_path,
        manifest=replace(
            manifest, model="facebook/sam3", text=text, files={**manifest.files, **listed}
        ),
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
    assert "coco:FILE.json: labelled images with masks in COCO's format; clips:N" in err


def test_a_damaged_bundle_stops_it(bundle_copy: Path, capsys: Capture) -> None:
    (bundle_copy / "parts/vision/vision.onnx").unlink()
    assert cli.main(["compare", str(bundle_copy)]) == 5
    assert "vision.onnx is missing in" in capsys.readouterr().err
