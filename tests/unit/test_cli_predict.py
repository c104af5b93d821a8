"""``samforge predict``: pictures, COCO files and tables, and what it says to bad input."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

import samforge
from samforge.apps import cli
from samforge.core.errors import PromptError, SettingError
from samforge.measure.accuracy import match_masks
from samforge.models import tiny
from samforge.workflows.inputs import images_from_paths, stems_for
from samforge.workflows.pointing import box_from_text
from samforge.workflows.thresholds import thresholds_from_texts

Capture = pytest.CaptureFixture[str]
Snapshot = Callable[[Path], dict[str, bytes]]
SCENE = tiny.draw_scene(1, split="demo")
"""Seven orange circles."""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The scene as a file."""
    path = tmp_path / "images" / "scene.png"
    path.parent.mkdir()
    Image.fromarray(SCENE.image).save(path)
    return path


def _predict(bundle: samforge.Bundle, *words: object) -> int:
    return cli.main(["predict", str(bundle.root), *map(str, words)])


def _fails_and_writes_nothing(bundle: samforge.Bundle, out: Path, *words: object) -> int:
    status = _predict(bundle, *words, "--out", out)
    assert not out.exists() or list(out.iterdir()) == []
    return status


# pycocotools 2.0.11 decodes through an array class older than numpy 2's protocol.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_what_is_found_is_written(
    tiny_bundle: samforge.Bundle, image: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    assert _predict(tiny_bundle, image, "--text", "circle", "--out", out, "--json") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    report = json.loads(captured.out)
    (found,) = report["images"]
    assert (report["command"], report["ok"], report["failures"]) == ("predict", True, [])
    stages = [stage["stage"] for stage in report["stages"]]
    expected = ["decode", "preprocess", "vision", "text", "detector", "post-process", "save"]
    assert stages == expected
    assert all(stage["milliseconds"] > 0 and stage["processor"] for stage in report["stages"])

    with Image.open(found["overlay"]) as picture:  # 224 px are too small to read tags on
        assert picture.size == (672, 672)
    coco = COCO(found["coco"])
    assert coco.loadImgs(1) == [{"id": 1, "file_name": "scene.png", "width": 224, "height": 224}]
    assert coco.loadCats(1) == [{"id": 1, "name": "circle"}]
    annotations = coco.loadAnns(coco.getAnnIds())
    assert len(annotations) == found["count"] > 0
    masks = np.stack([coco_mask.decode(one["segmentation"]) for one in annotations]).astype(bool)
    match = match_masks(masks, SCENE.masks[SCENE.matching("circle")])
    assert match.true_positives >= 6
    assert [one["area"] for one in annotations] == masks.sum((1, 2)).tolist()


def test_people_get_tables(
    tiny_bundle: samforge.Bundle, image: Path, tmp_path: Path, capsys: Capture
) -> None:
    left, top, right, bottom = SCENE.boxes_xyxy[0].tolist()
    box = f"{left},{top},{right},{bottom}"
    out = tmp_path / "out"
    assert _predict(tiny_bundle, image, "--box", box, "--out", out, "--threads", 1) == 0
    printed = capsys.readouterr().out
    for word in ("scene.png (224 x 224)", "visual", "pixels", "vision", "CPU, 1 threads", "total"):
        assert word in printed
    assert "scene.overlay.png, scene.coco.json" in printed
    with Image.open(out / "scene.overlay.png") as picture:
        pixels = np.asarray(picture)
    edge = pixels[round(3 * (top + bottom) / 2), round(3 * left) : round(3 * left) + 3]
    assert (edge == (0, 158, 60)).all(axis=-1).any(), "the exemplar box is drawn in green"


def test_a_phrase_without_a_find_shows_its_best_score(
    tiny_bundle: samforge.Bundle, image: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = (image, "--text", "circle", "--threshold", "1", "--out", tmp_path / "out")
    assert _predict(tiny_bundle, *words) == 0
    printed = capsys.readouterr().out
    assert "scene.png (224 x 224): nothing found." in printed
    assert "'circle': nothing above 1; the best score is 0." in printed
    assert "To see it: --threshold 0." in printed
    coco = json.loads((tmp_path / "out" / "scene.coco.json").read_text())
    assert (coco["annotations"], coco["categories"]) == ([], [{"id": 1, "name": "circle"}])


def test_a_phrase_has_a_threshold_of_its_own(
    tiny_bundle: samforge.Bundle, image: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = (image, "--text", "circle", "--text", "object", "--threshold", "0.6")
    own = ("--threshold-for", "circle=1", "--out", tmp_path / "out")
    assert _predict(tiny_bundle, *words, *own, "--json") == 0
    (one,) = json.loads(capsys.readouterr().out)["images"]
    segmenter = samforge.load(tiny_bundle)
    wanted = segmenter.predict(SCENE.image, text=["circle", "object"], threshold=[1, 0.6])
    assert [found["label"] for found in one["detections"]] == list(wanted.labels)
    assert set(wanted.labels) == {"object"}
    # People are told which option admits it.
    assert _predict(tiny_bundle, *words, *own, "--overwrite") == 0
    printed = capsys.readouterr().out
    assert "'circle': nothing above 1; the best score is 0." in printed
    assert "To see it: --threshold-for 'circle=0." in printed


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["circle"], "A threshold of one phrase is PHRASE=NUMBER, a number from 0 to 1, got"),
        (["circle="], "got 'circle='"),
        (["=0.5"], "got '=0.5'"),
        (["circle=1.5"], "got 'circle=1.5'"),
        (["circle=nan"], "got 'circle=nan'"),
        (["star=0.5"], "--threshold-for names 'star', which is not looked for. The phrases are: "),
        (["circle=0.4", "circle=0.5"], "names 'circle' twice: 0.4 and 0.5"),
    ],
)
def test_thresholds_of_phrases_that_are_refused(given: list[str], message: str) -> None:
    with pytest.raises((SettingError, PromptError), match=re.escape(message)):
        thresholds_from_texts(given, ["circle"])


def test_a_phrase_may_hold_the_sign() -> None:
    assert thresholds_from_texts(["a = b=0.4"], ["a = b"]) == {"a = b": 0.4}


def test_images_of_one_name_do_not_overwrite_each_other(
    tiny_bundle: samforge.Bundle, image: Path, tmp_path: Path, capsys: Capture
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    Image.fromarray(SCENE.image[:112]).save(other / "scene.jpg")
    out = tmp_path / "out"
    words = (image.parent, other, image, "--text", "circle", "--out", out, "--json")
    assert _predict(tiny_bundle, *words) == 0
    report = json.loads(capsys.readouterr().out)
    assert [Path(one["overlay"]).name for one in report["images"]] == [
        "scene.overlay.png",
        "scene-2.overlay.png",
    ]
    assert [one["size_hw"] for one in report["images"]] == [[224, 224], [112, 224]]
    assert len(list(out.iterdir())) == 4


def test_stems_leave_other_names_and_the_images_alone(tmp_path: Path) -> None:
    names = ["x.png", "X.jpg", "x-2.png", "y.png", "y.overlay.png"]
    images = [tmp_path / name for name in names]
    # In the images' own folder, y's overlay would be written over the image y.overlay.png.
    assert stems_for(images, tmp_path) == ["x", "X-3", "x-2", "y-2", "y.overlay"]
    assert stems_for(images, tmp_path / "out")[3] == "y"


def test_overlays_of_an_earlier_run_are_no_images(tmp_path: Path) -> None:
    for name in ("a.png", "a.overlay.png"):
        (tmp_path / name).touch()
    assert images_from_paths([tmp_path], tmp_path) == ([tmp_path / "a.png"], [])
    assert len(images_from_paths([tmp_path], tmp_path / "out")[0]) == 2


def _truncated(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda path: path.write_text("hello"), "is not an image that samforge reads"),
        (_truncated, "was not transferred whole"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.unlink(), "does not exist"),
    ],
    ids=["no image", "truncated", "zero bytes", "not there"],
)
def test_a_bad_image_among_good_ones(
    break_it: Callable[[Path], None],
    message: str,
    tiny_bundle: samforge.Bundle,
    image: Path,
    tmp_path: Path,
    capsys: Capture,
) -> None:
    bad = tmp_path / "bad.png"
    Image.fromarray(SCENE.image).save(bad)
    break_it(bad)
    out = tmp_path / "out"
    assert _predict(tiny_bundle, bad, image, "--text", "circle", "--out", out) == 2
    captured = capsys.readouterr()
    assert f"ImageError: {bad}" in captured.err
    assert message in captured.err
    assert "1 failed, 1 done." in captured.err
    assert str(bad) not in captured.out
    assert sorted(path.name for path in out.iterdir()) == ["scene.coco.json", "scene.overlay.png"]


def test_an_image_without_pixels(
    tiny_bundle: samforge.Bundle, tmp_path: Path, capsys: Capture
) -> None:
    bad = tmp_path / "flat.pgm"
    bad.write_bytes(b"P5 0 4 255\n")
    out = tmp_path / "out"
    words = (bad, "--text", "circle", "--json")
    assert _fails_and_writes_nothing(tiny_bundle, out, *words) == 2
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert report["error"]["kind"] == report["failures"][0]["kind"] == "ImageError"
    assert str(bad) in report["error"]["message"]


def test_a_folder_without_images_does_not_stop_the_others(
    tiny_bundle: samforge.Bundle, image: Path, tmp_path: Path, capsys: Capture
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    out = tmp_path / "out"
    assert _predict(tiny_bundle, empty, image, "--text", "circle", "--out", out) == 2
    assert f"ImageError: {empty} holds 0 files and no image" in capsys.readouterr().err
    assert (out / "scene.coco.json").is_file()


def test_a_phrase_longer_than_the_context(
    tiny_bundle: samforge.Bundle, image: Path, tmp_path: Path, capsys: Capture
) -> None:
    phrase = "red " * 40 + "circle"
    assert _predict(tiny_bundle, image, "--text", phrase, "--out", tmp_path / "out") == 0
    err = capsys.readouterr().err
    assert "is longer than the model's 32 tokens: only " in err
    assert "Shorten it." in err
    assert (tmp_path / "out" / "scene.coco.json").is_file()


def test_unknown_words(
    tiny_bundle: samforge.Bundle, image: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert _predict(tiny_bundle, image, "--text", "red giraffe", "--out", tmp_path / "out") == 0
    err = capsys.readouterr().err
    assert "Warning: The model does not know 'giraffe' of the phrase 'red giraffe'" in err
    for word in (*tiny.vocabulary()[:7], "white"):
        assert word in err


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ("0,0,225,10", "leaves the image, which is 224 wide and 224 high"),
        ("-1,0,10,10", "leaves the image"),
        ("90,20,10,120", "has no area"),
        ("nan,0,10,10", "is not finite"),
        ("1,2,3", "A box is four numbers, left,top,right,bottom in pixels, got '1,2,3'"),
        ("1,2,3,x", "got '1,2,3,x'. Write it like --box 10,20,90,120"),
    ],
)
def test_a_bad_box(
    box: str,
    message: str,
    tiny_bundle: samforge.Bundle,
    image: Path,
    tmp_path: Path,
    capsys: Capture,
) -> None:
    out = tmp_path / "out"
    assert _fails_and_writes_nothing(tiny_bundle, out, image, "--box", box) == 2
    captured = capsys.readouterr()
    assert "PromptError: " in captured.err
    assert message in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("option", ["--threshold", "--mask-threshold"])
@pytest.mark.parametrize("value", ["-0.1", "1.5", "nan"])
def test_a_threshold_outside_0_to_1(
    option: str,
    value: str,
    tiny_bundle: samforge.Bundle,
    image: Path,
    tmp_path: Path,
    capsys: Capture,
) -> None:
    words = (image, "--text", "circle", option, value)
    assert _fails_and_writes_nothing(tiny_bundle, tmp_path / "out", *words) == 2
    name = option.removeprefix("--").replace("-", "_")
    expected = f"SettingError: {name} is {float(value)}. Give a number from 0 to 1."
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ((), "There is nothing to find. Give --text"),
        (("--text", " "), "A phrase is empty"),
        (("--text", "a", "--text", "b", "--box", "1,2,3,4"), "Boxes go with one phrase, got 2"),
    ],
)
def test_prompts_that_say_nothing(
    prompts: tuple[str, ...],
    message: str,
    tiny_bundle: samforge.Bundle,
    image: Path,
    tmp_path: Path,
    capsys: Capture,
) -> None:
    assert _fails_and_writes_nothing(tiny_bundle, tmp_path / "out", image, *prompts) == 2
    assert message in capsys.readouterr().err


def test_an_unwritable_folder_is_told_before_any_work(
    monkeypatch: pytest.MonkeyPatch,
    tiny_bundle: samforge.Bundle,
    image: Path,
    tmp_path: Path,
    capsys: Capture,
) -> None:
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / "out"
    monkeypatch.setattr(samforge, "load", None, raising=False)
    assert _predict(tiny_bundle, image, "--text", "circle", "--out", out) == 6
    assert f"OutputError: {out} cannot be written: Not a directory." in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(
    tiny_bundle: samforge.Bundle, image: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    out.mkdir(mode=0o555)
    assert _predict(tiny_bundle, image, "--text", "circle", "--out", out) == 6
    assert f"{out} cannot be written: Permission denied" in capsys.readouterr().err


def _flip_a_byte(bundle: Path) -> None:
    file = bundle / "parts" / "vision" / "vision.onnx"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _lead_outside(bundle: Path) -> None:
    manifest = bundle / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace("parts/vision/vision.onnx", "../vision/vision.onnx"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_flip_a_byte, "vision.onnx in {root} is not the file that was built: its hash differs"),
        (lambda b: (b / "parts/text/text.onnx").unlink(), "parts/text/text.onnx is missing in"),
        (_lead_outside, "the path '../vision/vision.onnx' leaves the bundle"),
    ],
    ids=["flipped byte", "missing file", "path outside"],
)
def test_a_damaged_bundle(
    damage: Callable[[Path], None],
    message: str,
    bundle_copy: Path,
    tmp_path: Path,
    capsys: Capture,
    snapshot: Snapshot,
) -> None:
    damage(bundle_copy)
    before = snapshot(bundle_copy)
    out = tmp_path / "out"
    words = ["predict", str(bundle_copy), "scene.png", "--text", "circle", "--out", str(out)]
    assert cli.main(words) == 5
    captured = capsys.readouterr()
    assert "DamagedBundle: " in captured.err
    assert message.format(root=bundle_copy) in captured.err
    assert captured.out == ""
    assert list(out.iterdir()) == []
    assert snapshot(bundle_copy) == before


def test_a_folder_that_is_no_bundle(image: Path, tmp_path: Path, capsys: Capture) -> None:
    words = ["predict", str(image.parent), str(image), "--text", "a", "--out", str(tmp_path / "o")]
    assert cli.main(words) == 5
    err = capsys.readouterr().err
    assert f"ForeignBundle: {image.parent} is not a samforge bundle" in err


def test_a_process_separates_results_from_errors(
    tiny_bundle: samforge.Bundle, image: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "samforge.apps.cli", "predict", str(tiny_bundle.root)]
    words = [str(image), str(tmp_path / "no.png"), "--text", "circle", "--out", str(tmp_path / "o")]
    run = subprocess.run([*command, *words, "--json"], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr == ""
    assert json.loads(run.stdout)["failures"][0]["kind"] == "ImageError"
    run = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr.startswith(f"ImageError: {tmp_path / 'no.png'} does not exist")
    assert "scene.overlay.png" in run.stdout
    assert "\x1b" not in run.stdout + run.stderr


def test_boxes_are_read() -> None:
    assert box_from_text("1, 2.5,3,4") == (1.0, 2.5, 3.0, 4.0)
    with pytest.raises(PromptError, match="four numbers"):
        box_from_text("")
