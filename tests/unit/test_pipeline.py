"""The main flow: order, resume, gates, and what a bundle says about itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

import samforge
from samforge.backends.onnxruntime import OnnxRuntimeSession
from samforge.core.errors import FidelityError, ForeignBundle, SettingError
from samforge.core.manifest import StepResult
from samforge.core.recipe import Gates, Recipe
from samforge.core.session import Array, Tensors
from samforge.models.tiny import LICENSE_NOTICE
from samforge.models.tiny.scenes import draw_scene
from samforge.steps import export as export_step
from samforge.transform.export import runs_of_exported


class Watched:
    """Notes what the build says; may stop it before a step, as a kill would."""

    def __init__(self, stop_before: str | None = None) -> None:
        self.begun: list[str] = []
        self.results: list[StepResult] = []
        self._stop_before = stop_before

    def started(self, step: str, part: str, index: int, total: int) -> None:
        if f"{step}/{part}" == self._stop_before:
            raise KeyboardInterrupt
        self.begun.append(f"{index + 1}/{total} {step}/{part}")

    def finished(self, result: StepResult) -> None:
        self.results.append(result)


TEXT = Recipe(parts=("text",), random_weights=True)
"""The smallest real build: two seconds."""


@pytest.fixture(scope="module")
def text_build(tmp_path_factory: pytest.TempPathFactory) -> tuple[samforge.Bundle, Watched]:
    """The text part, built once, and what the build said: read only."""
    watched = Watched()
    out = tmp_path_factory.mktemp("text") / "text"
    return samforge.build(TEXT, out=out, progress=watched), watched


def test_steps_in_order_and_what_the_bundle_says(
    text_build: tuple[samforge.Bundle, Watched],
) -> None:
    bundle, watched = text_build
    assert watched.begun == [
        *("1/4 export/text", "2/4 fuse/text", "3/4 onnx/text", "4/4 verify/"),
    ]
    manifest = bundle.manifest
    # "inf" stands for an infinite SQNR in the manifest; all else reads back as it was.
    assert [(step.name, step.part) for step in manifest.steps] == [
        ("export", "text"),
        ("fuse", "text"),
        ("onnx", "text"),
        ("verify", None),
    ]
    assert manifest.steps[3].notes[0].startswith("Weights are random")
    assert [step.seconds for step in manifest.steps] == [r.seconds for r in watched.results]
    assert [step.resumed for step in manifest.steps] == [False] * 4
    assert set(manifest.files) == {
        "LICENSE-weights.txt",
        "parts/text/text.onnx",
        "report/report.html",
        "report/text/fusions.json",
        *(f"report/text/weights-{step}.json" for step in ("export", "fuse", "onnx")),
        "tokenizer/tokenizer.json",
        "verify/proof.npz",
    }
    assert manifest.parents == {"weights": "random:seed=0"}
    assert manifest.gates == {
        "export_max_abs": 0.0,
        "fuse_max_abs": 1e-5,
        "onnx_max_abs": 1e-4,
    }
    assert Recipe.from_dict(dict(manifest.recipe)) == TEXT
    *compared, account = manifest.steps[0].fidelity
    assert [row["max_abs"] for row in compared] == [0.0] * 10  # two outputs at five sizes
    assert account["weights"] == sum(account["forms"].values())
    close = [row["gated"] for row in manifest.steps[2].fidelity[:-1]]
    assert 0 <= max(close) <= 1e-4
    assert "random numbers" in bundle.path("LICENSE-weights.txt").read_text()
    assert not list(bundle.root.parent.glob(".*"))


def test_random_weights_are_held_to_tensors(
    text_build: tuple[samforge.Bundle, Watched],
) -> None:
    """What they find means nothing; whether they are computed right can be asked all the same."""
    found = samforge.verify(text_build[0].root, record=False)
    assert [(one.part, one.fidelity.tensor) for one in found.tensors] == [
        ("text", "text_features"),
        ("text", "text_mask"),
    ]
    assert min(one.fidelity.cosine for one in found.tensors) > 0.99999
    assert found.evidence is None


@pytest.fixture(scope="module")
def stopped_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the text part's build was stopped before its conversion: copy it, never resume it."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(KeyboardInterrupt):
        samforge.build(TEXT, out=folder / "text", progress=Watched(stop_before="onnx/text"))
    return folder


def test_another_seed_is_another_step(stopped_build: Path, tmp_path: Path) -> None:
    out = shutil.copytree(stopped_build, tmp_path / "copy") / "text"
    watched = Watched(stop_before="onnx/text")
    with pytest.raises(KeyboardInterrupt):
        samforge.build(replace(TEXT, seed=1), out=out, progress=watched)
    # Neither of the two steps that the other seed had finished.
    assert [result.resumed for result in watched.results] == [False] * 2


def test_below_the_gate_nothing_is_published(tmp_path: Path) -> None:
    out = tmp_path / "text"
    recipe = Recipe(parts=("text",), gates=Gates(onnx_max_abs=0.0))
    with pytest.raises(
        FidelityError, match=r"onnx of text at .*text_features differs by"
    ) as caught:
        samforge.build(recipe, out=out)
    assert "the gate is 0. Nothing was published." in str(caught.value)
    assert not out.exists()
    # The evidence stays: the graph that failed and what it was compared with.
    work = tmp_path / ".text.building"
    assert (work / "parts/text/text.onnx").is_file()
    with np.load(work / "work/text/sample-0.npz") as sample:
        assert set(sample) == {"input_ids", "text_features", "text_mask"}
    steps = json.loads((work / "steps.json").read_text())["steps"]
    assert list(steps) == ["export/text", "fuse/text"]


def test_an_older_bundle_survives_a_failed_build(
    text_build: tuple[samforge.Bundle, Watched],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "text"
    before = samforge.open_bundle(shutil.copytree(text_build[0].root, out)).manifest
    monkeypatch.setattr(export_step, "runs_of_exported", _slightly_wrong)
    with pytest.raises(FidelityError):
        samforge.build(TEXT, out=out)
    assert samforge.open_bundle(out).manifest == before


def test_a_bundle_without_vision_does_not_segment(
    text_build: tuple[samforge.Bundle, Watched],
) -> None:
    with pytest.raises(ForeignBundle, match="to segment it needs vision, detector as well"):
        samforge.load(text_build[0])


def test_settings_beside_a_recipe(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="got a recipe and precision, seed beside it"):
        samforge.build(TEXT, out=tmp_path / "text", seed=1, precision="fp32")


def test_unknown_parts_stages_and_settings(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"no part wings\. Its parts: vision, text"):
        samforge.build("tiny", out=tmp_path / "x", parts=("wings",))
    with pytest.raises(SettingError, match=r"until is 'engine'; .* can stop at: export, onnx"):
        samforge.build("tiny", out=tmp_path / "x", until="engine")
    with pytest.raises(SettingError, match=r"'presicion' .did you mean 'precision'"):
        samforge.build("tiny", out=tmp_path / "x", presicion="fp32")
    assert not (tmp_path / "x").exists()


def test_the_tiny_bundle_carries_its_licence(tiny_bundle: samforge.Bundle) -> None:
    assert tiny_bundle.path("LICENSE-weights.txt").read_text() == LICENSE_NOTICE
    assert tiny_bundle.manifest.text is not None
    assert tiny_bundle.manifest.text.synthetic is False
    assert tiny_bundle.manifest.parents["weights"].startswith("sha256:")


def test_a_torch_bundle_finds_the_same(
    tiny_bundle: samforge.Bundle, tiny_torch_bundle: samforge.Bundle
) -> None:
    manifest = tiny_torch_bundle.manifest
    assert manifest.target == "torch"
    assert {Path(part.artifact).suffix for part in manifest.parts.values()} == {".pt2"}
    assert set(manifest.parts) == set(tiny_bundle.manifest.parts)
    # Every step was taken over from the other build, with its figures.
    assert [(step.name, step.resumed) for step in manifest.steps] == [("export", True)] * 4
    exported = [step for step in tiny_bundle.manifest.steps if step.name == "export"]
    assert [replace(step, resumed=False) for step in manifest.steps] == exported
    scene = draw_scene(3, split="demo")
    phrases = ["object", "star", "red circle"]
    boxes = {"boxes_xyxy": scene.boxes_xyxy[:1], "box_labels": [1]}
    one, other = samforge.load(tiny_bundle), samforge.load(tiny_torch_bundle)
    for prompt in ({"text": phrases}, boxes):
        wanted, found = (segmenter.predict(scene.image, **prompt) for segmenter in (one, other))
        assert len(wanted) > 0
        assert found.labels == wanted.labels
        assert np.allclose(found.scores, wanted.scores, atol=1e-4)
        assert np.allclose(found.boxes_xyxy, wanted.boxes_xyxy, atol=0.01)
        assert np.mean(found.masks.dense() != wanted.masks.dense()) < 1e-4


SMALL_STEPS = (
    *("export/text", "fuse/text", "onnx/text"),
    *("export/vision", "fuse/vision", "onnx/vision"),
    "verify/",
)


def test_a_build_killed_at_every_boundary_resumes(
    small_folder: Path, small_bundle: samforge.Bundle, tmp_path: Path
) -> None:
    out = tmp_path / "small"
    recipe = Recipe(model=str(small_folder), parts=("text", "vision"))
    for killed, step in enumerate(SMALL_STEPS):
        watched = Watched(stop_before=step)
        with pytest.raises(KeyboardInterrupt):
            samforge.build(recipe, out=out, progress=watched)
        # All that earlier runs had finished was taken over, and one more step done.
        taken_over = [True] * (killed - 1) + [False] if killed else []
        assert [result.resumed for result in watched.results] == taken_over
        assert not out.exists()
    last = Watched()
    bundle = samforge.build(recipe, out=out, progress=last)
    assert last.begun == [f"{index + 1}/7 {step}" for index, step in enumerate(SMALL_STEPS)]
    assert [result.resumed for result in last.results] == [True] * 6 + [False]
    assert not list(tmp_path.glob(".*"))
    # The result is that of two processes without a break, but for the times in its report.
    files, wanted = dict(bundle.manifest.files), dict(small_bundle.manifest.files)
    assert files.pop("report/report.html") != wanted.pop("report/report.html")
    assert files == wanted
    assert bundle.manifest.parts == small_bundle.manifest.parts


@pytest.fixture(scope="module")
def small_bundle(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> samforge.Bundle:
    """Two parts of the small checkpoint, built side by side and without a break."""
    recipe = Recipe(model=str(small_folder), parts=("text", "vision"))
    return samforge.build(recipe, out=tmp_path_factory.mktemp("pipeline") / "small", jobs=2)


def test_a_folders_tokenizer_and_licence_come_along(
    small_bundle: samforge.Bundle, small_folder: Path
) -> None:
    manifest = small_bundle.manifest
    tokenizer = small_bundle.path("tokenizer/tokenizer.json").read_bytes()
    assert tokenizer == (small_folder / "tokenizer.json").read_bytes()
    assert manifest.text is not None
    assert (manifest.text.context, manifest.text.pad_id, manifest.text.synthetic) == (
        12,
        299,
        False,
    )
    assert manifest.model == str(small_folder)
    assert "SAM License" in small_bundle.path(manifest.weights_license).read_text()
    assert manifest.parents["weights"].startswith("sha256:")


def test_random_weights_without_a_tokenizer_say_so(small_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "architecture"
    folder.mkdir()
    shutil.copy(small_folder / "config.json", folder)
    recipe = Recipe(model=str(folder), parts=("text",), random_weights=True, seed=5)
    bundle = samforge.build(recipe, out=tmp_path / "random", until="export")
    assert bundle.manifest.text is not None
    assert bundle.manifest.text.synthetic is True
    assert bundle.manifest.parents == {"weights": "random:seed=5"}
    assert "random numbers" in bundle.path("LICENSE-weights.txt").read_text()
    tokenizer = Tokenizer.from_file(str(bundle.path("tokenizer/tokenizer.json")))
    ids = tokenizer.encode("a").ids
    assert (ids[0], ids[-1], len(ids)) == (298, 299, 3)


def test_a_runtime_that_computes_something_else_is_caught(
    monkeypatch: pytest.MonkeyPatch, stopped_build: Path, tmp_path: Path
) -> None:
    run = OnnxRuntimeSession.run

    def wrong(self: OnnxRuntimeSession, tensors: Tensors) -> dict[str, Array]:
        results = run(self, tensors)
        results["text_features"][0, 0, 0] = np.nan
        return results

    monkeypatch.setattr(OnnxRuntimeSession, "run", wrong)
    with pytest.raises(FidelityError, match=r"onnx of text at .*: text_features differs by inf"):
        samforge.build(TEXT, out=shutil.copytree(stopped_build, tmp_path / "copy") / "text")
    assert not (tmp_path / "copy" / "text").exists()


def _slightly_wrong(*arguments: Any) -> Iterator[dict[str, Any]]:
    """What an exported program gives, off by a millionth."""
    for outputs in runs_of_exported(*arguments):
        yield {
            name: tensor + 2**-20 if tensor.is_floating_point() else tensor
            for name, tensor in outputs.items()
        }


def test_the_export_gate_holds_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(export_step, "runs_of_exported", _slightly_wrong)
    with pytest.raises(
        FidelityError, match=r"export of text .* differs by .*e-0[67].* the gate is 0"
    ):
        samforge.build(TEXT, out=tmp_path / "text")
    assert not (tmp_path / "text").exists()
    assert (tmp_path / ".text.building/parts/text/text.pt2").is_file()
