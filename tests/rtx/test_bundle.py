"""Bundles for TensorRT for RTX, from the checkpoint to a refusal to run without a GPU.

The whole tiny model in int8 takes minutes, and is what continuous integration publishes.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import samforge
from samforge.apps import cli
from samforge.backends.tensorrt.cuda import gpu_here
from samforge.backends.tensorrt.ladder import NOT_VERIFIED
from samforge.backends.tensorrt.stamp import read_stamp
from samforge.core.manifest import verified
from samforge.media import write_png
from samforge.models.tiny import draw_scene

pytestmark = [
    pytest.mark.rtx,
    pytest.mark.skipif(gpu_here() is not None, reason="engines run here: they are verified"),
]
pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")

BUILD = ("build", "tiny", "--target", "tensorrt-rtx", "--compute-capability", "89")
RECIPE = """
model = "tiny"
target = "tensorrt-rtx"
precision = "int8"
compute_capabilities = ["89"]

[quantization]
mixed = false  # trying every group alone takes half of the build, and is tested for other targets
"""
Capture = pytest.CaptureFixture[str]


def _built(out: Path, *words: str) -> samforge.Bundle:
    assert cli.main([*words, "--out", str(out)]) == 0
    return samforge.open_bundle(out)


def _check_engines(bundle: samforge.Bundle, precision: str, products: dict[str, str]) -> None:
    """What every part's engine, stamp, summary and the report must say.

    Args:
        bundle: The bundle.
        precision: Number format it was asked for.
        products: A format that products of each part must have.
    """
    manifest = bundle.manifest
    assert (manifest.target, list(manifest.parts)) == ("tensorrt-rtx", list(products))
    for name, expected in products.items():
        engine = bundle.path(manifest.parts[name].artifact)
        stamp = read_stamp(engine)
        assert stamp is not None
        assert stamp.computation is not None
        assert (stamp.compute_capabilities, stamp.precision) == (("89",), precision)
        assert stamp.computation.gemms[expected] > 0
        assert stamp.computation.attentions > 0
        summary = json.loads(bundle.path(f"report/{name}/engine.json").read_text())
        assert summary["engine"] == manifest.parts[name].artifact
        assert summary["computation"]["gemms"] == dict(stamp.computation.gemms)
        assert "building" not in summary["command"]
    assert not verified(manifest)
    notes = [note for step in manifest.steps for note in step.notes]
    assert sum(NOT_VERIFIED in note.lower() for note in notes) == len(products) + 1
    page = bundle.path("report/report.html").read_text(encoding="utf-8")
    assert "<h2>Engines</h2>" in page
    assert NOT_VERIFIED in page


def test_a_part_in_half(tmp_path: Path, one_thread: None, capsys: Capture) -> None:
    bundle = _built(tmp_path / "text", *BUILD, "--precision", "fp16", "--part", "text")
    _check_engines(bundle, "fp16", {"text": "fp16"})
    capsys.readouterr()
    assert cli.main(["verify", str(bundle.root)]) == 5
    error = capsys.readouterr().err
    assert "was built for a GPU of compute capability 89, and there is no GPU here" in error


@pytest.mark.slow
def test_the_tiny_model_in_int8(tmp_path: Path, one_thread: None, capsys: Capture) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE, encoding="utf-8")
    bundle = _built(tmp_path / "tiny", "build", str(recipe))
    parts = ("vision", "text", "detector", "detector_boxes")
    _check_engines(bundle, "int8", dict.fromkeys(parts, "int8"))
    write_png(tmp_path / "scene.png", draw_scene(0, split="demo").image)
    capsys.readouterr()
    command = ["predict", str(bundle.root), str(tmp_path / "scene.png"), "--text", "star"]
    assert cli.main([*command, "--out", str(tmp_path / "found")]) == 5
    note, error = capsys.readouterr().err.splitlines()
    assert note == f"{bundle.root} was not verified on hardware: run samforge verify first."
    assert error.startswith(f"ForeignBundle: {bundle.path('parts/vision/vision.engine')} was built")
    assert "there is no GPU here. Run it where there is one, or build for --target" in error
