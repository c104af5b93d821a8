"""``samforge demo``: it shows what the model finds, and fails when that is nothing."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import samforge
from samforge.apps import cli
from samforge.core.errors import FidelityError
from samforge.measure import Accuracy, SegmenterAccuracy
from samforge.models import tiny
from samforge.workflows import demo as demonstration
from samforge.workflows.demo import (
    LOWEST_F1,
    SCENE_PX,
    finished_bundle,
    prompts_of,
    require_accuracy,
)

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def prepared(tiny_bundle: samforge.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A demo folder with the finished bundle, and few scenes to measure."""
    shutil.copytree(tiny_bundle.root, tmp_path / "demo" / "bundle")
    monkeypatch.setattr(demonstration, "EVALUATED", 4)
    return tmp_path / "demo"


def test_pictures_and_proof(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(demonstration, "require_accuracy", lambda _: None)
    assert cli.main(["demo", "--out", str(prepared), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["command"], report["ok"], report["reused"]) == ("demo", True, True)
    assert len(report["steps"]) == 13
    assert report["accuracy"]["images"] == 4
    assert report["found"] >= 20
    assert len(report["overlays"]) == 24
    assert report["picture"] == str(prepared / "demo.png")
    with Image.open(report["picture"]) as picture:
        assert picture.width > 6 * SCENE_PX
        assert picture.height > 4 * SCENE_PX
    with Image.open(report["overlays"][0]) as picture:
        assert picture.size == (2 * SCENE_PX, 2 * SCENE_PX)

    assert cli.main(["demo", "--out", str(prepared)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for word in (
        *("taken over from an earlier run", "cosine", "held its gate: export_max_abs 0"),
        *("Accuracy on 4 held-out scenes", "presence", "vision", "ms per image", "ms for 6"),
    ):
        assert word in out
    assert f"Open this picture: {prepared / 'demo.png'}" in out


def test_a_demo_that_finds_too_little_fails(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(demonstration, "LOWEST_F1", 1.01)
    monkeypatch.setattr(demonstration, "EVALUATED", 1)
    assert cli.main(["demo", "--out", str(prepared)]) == 7
    out, err = capsys.readouterr()
    assert "FidelityError: The bundle was built and runs, but does not find what is there" in err
    assert "Accuracy on 1 held-out scenes" in out
    assert "Done in" not in out


def _accuracy(f1: float) -> SegmenterAccuracy:
    counts: dict[str, Any] = dict.fromkeys(
        ("true_positives", "false_positives", "false_negatives", "prompts"), 1
    )
    text = Accuracy(f1=f1, mean_iou=0.9, presence=0.9, iou_threshold=0.5, **counts)
    return SegmenterAccuracy(images=40, text=text, boxes=None, image_ms=1.0, stages=())


def test_the_floor() -> None:
    require_accuracy(_accuracy(LOWEST_F1))
    with pytest.raises(FidelityError, match=r"F1 by text is 0\.849 on 40 held-out scenes"):
        require_accuracy(_accuracy(0.849))
    with pytest.raises(FidelityError, match=r"F1 by text is 0\.000"):
        require_accuracy(replace(_accuracy(1.0), text=None))


def test_a_bundle_is_taken_over_only_if_it_is_what_would_be_built(
    tiny_bundle: samforge.Bundle,
    bundle_copy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = samforge.Recipe.from_dict(tiny_bundle.manifest.recipe)
    bundle, problem = finished_bundle(bundle_copy, recipe)
    assert bundle is not None
    assert bundle.root == bundle_copy
    assert problem == ""
    assert finished_bundle(tmp_path / "nothing", recipe) == (None, "")
    assert finished_bundle(bundle_copy, replace(recipe, seed=9)) == (
        None,
        "It was built from another recipe.",
    )
    with monkeypatch.context() as patch:
        patch.setattr(demonstration, "__version__", "9.9")
        assert finished_bundle(bundle_copy, recipe) == (
            None,
            f"It was built by samforge {samforge.__version__}, this is 9.9.",
        )
    with monkeypatch.context() as patch:
        patch.setattr(tiny, "weights_digest", lambda **_: "sha256:other")
        if not recipe.random_weights:
            assert finished_bundle(bundle_copy, recipe)[1] == "It was built from other weights."
    with monkeypatch.context() as patch:
        patch.setattr(tiny, "TOKENIZER_PATH", tiny.CONFIG_PATH)
        assert finished_bundle(bundle_copy, recipe)[1] == "It was built with another tokenizer."
    (bundle_copy / "tokenizer" / "tokenizer.json").unlink()
    assert "is missing in" in finished_bundle(bundle_copy, recipe)[1]


@pytest.mark.parametrize("absent", [False, True])
def test_prompts_name_what_is_there(absent: bool) -> None:
    for number in range(30):
        scene = tiny.draw_scene(number, split="demo")
        concept, shape, third, box = prompts_of(scene, absent=absent)
        assert [concept.title, shape.title] == [concept.text, shape.text]
        assert concept.text in scene.phrases()
        assert shape.text in scene.phrases()
        assert (third.text in scene.phrases()) is not absent
        assert third.title.endswith("(not there)") is absent
        assert box.text is None
        edges = [round(edge, 3) for edge in box.boxes_xyxy[0]]
        known = [[round(edge, 3) for edge in one] for one in scene.boxes_xyxy.tolist()]
        assert edges in known
