"""``import samforge`` is quick: nothing heavy or optional comes with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import samforge

HEAVY = {
    "PIL",
    "av",
    "cv2",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "pyarrow",
    "pycocotools",
    "pyogrio",
    "pyproj",
    "rasterio",
    "rich",
    "scipy",
    "shapely",
    "supervision",
    "tensorrt",
    "tensorrt_rtx",
    "tokenizers",
    "torch",
    "transformers",
    "typer",
}


def _loaded_by(statement: str) -> set[str]:
    """Heavy packages in a fresh interpreter after one statement."""
    script = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(Path(samforge.__file__).parents[1])}
    run = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return HEAVY & set(json.loads(run.stdout))


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ("import samforge", set()),
        ("import samforge; dir(samforge); samforge.__version__", set()),
        ("import samforge; samforge.Detections", {"numpy"}),
        ("import samforge; samforge.Recipe(model='tiny').to_dict()", set()),
        ("import samforge; samforge.open_bundle, samforge.Bundle", {"numpy"}),
        ("import samforge; samforge.read_image", {"numpy", "PIL"}),
        ("import samforge; samforge.overlay", {"numpy", "PIL"}),
        ("import samforge; samforge.Segmenter", {"numpy", "PIL", "tokenizers"}),
        ("import samforge; samforge.load", {"numpy", "PIL", "tokenizers", "onnxruntime"}),
        ("import samforge; samforge.segment_raster", {"numpy", "PIL", "tokenizers"}),
        ("import samforge.apps.cli", {"rich", "typer"}),
    ],
)
def test_what_is_loaded(statement: str, allowed: set[str]) -> None:
    assert _loaded_by(statement) <= allowed
