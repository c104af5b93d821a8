"""What several test files share: one small manifest to bend, one real bundle to run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import samforge
from samforge.core.images import ImageSpec
from samforge.core.manifest import SCHEMA_VERSION, Manifest, PartEntry, StepResult, TextSpec
from samforge.core.session import PartSpec, TensorSpec
from samforge.models import tiny


@pytest.fixture
def manifest() -> Manifest:
    """A manifest of one part, without files."""
    spec = PartSpec(
        name="vision",
        inputs=(TensorSpec(name="pixels", dtype="float32", shape=("batch", 3, 28, 28)),),
        outputs=(TensorSpec(name="features", dtype="float32", shape=("batch", 4)),),
    )
    step = StepResult(
        name="export",
        part="vision",
        seconds=1.5,
        bytes=3,
        peak_gib=None,
        resumed=False,
        fidelity=({"tensor": "features", "max_abs": 0.0, "sqnr_db": "inf"},),
    )
    return Manifest(
        schema_version=SCHEMA_VERSION,
        samforge="0.1.0",
        created="2026-01-31T12:00:00+00:00",
        family="sam3",
        model="tiny",
        recipe={"model": "tiny", "parts": None},
        image=ImageSpec(size=28),
        text=TextSpec(context=32, pad_id=0, tokenizer="tokenizer/tokenizer.json", synthetic=False),
        target="onnxruntime",
        parts={
            "vision": PartEntry(
                spec=spec,
                artifact="parts/vision/vision.onnx",
                side_files=("parts/vision/vision.onnx.data",),
            )
        },
        files={},
        parents={"checkpoint": "0" * 64},
        versions={"python": "3.11.7"},
        steps=(step,),
        gates={"export_max_abs": 0.0},
        weights_license="Apache-2.0",
    )


@pytest.fixture
def bundle_files() -> dict[str, bytes]:
    """Content of the files that the manifest's part and text need."""
    return {
        "parts/vision/vision.onnx": b"onnx",
        "parts/vision/vision.onnx.data": bytes(range(256)),
        "tokenizer/tokenizer.json": b"{}",
    }


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> samforge.Bundle:
    """The tiny model's bundle, built once (about a minute): read it, copy it, never change it."""
    # TODO(lead): drop random_weights once the trained weights are in the repository for good.
    untrained = not tiny.WEIGHTS_PATH.is_file()
    out = tmp_path_factory.mktemp("bundles") / "tiny"
    return samforge.build("tiny", random_weights=untrained, out=out)


@pytest.fixture
def bundle_copy(tiny_bundle: samforge.Bundle, tmp_path: Path) -> Path:
    """A copy of the tiny bundle that a test may damage."""
    return Path(shutil.copytree(tiny_bundle.root, tmp_path / "copy"))


@pytest.fixture
def snapshot() -> Callable[[Path], dict[str, bytes]]:
    """Reads every file below a folder, to show that a failure changed none."""

    def read(folder: Path) -> dict[str, bytes]:
        files = (path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    return read
