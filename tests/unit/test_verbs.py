"""Whatever the command line can do is a function, in a process that has no command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import samforge
from samforge.core.errors import DamagedBundle, SettingError

VERBS = (
    *("bench", "compare", "compare_mesh_files", "compare_videos", "demo", "environment"),
    *("feature_pictures", "inspect", "label", "predict_files", "segment_video_file", "verify"),
)
NO_SHELL = "import sys; sys.modules['typer'] = sys.modules['rich'] = sys.modules['click'] = None\n"
SCRIPT = """
import json, pathlib
from fractions import Fraction
import numpy as np, samforge
from samforge.measure import Budget
from samforge.media import VideoWriter
from samforge.runtime import Thresholds

bundle, folder = pathlib.Path({bundle!r}), pathlib.Path({folder!r})
report = samforge.inspect(bundle)
rows = samforge.compare([bundle, samforge.open_bundle(bundle)], "scenes:1")
budget = Budget(warm_up=0, iterations=1)
speeds = samforge.bench([bundle], batch=(1, 2), budget=budget, memory=False)
segmenter = samforge.load(bundle)
thresholds = Thresholds(score=0.5, mask=0.5)
prompts = samforge.Prompts(text=("red circle",), thresholds=thresholds)
found = samforge.predict_files(segmenter, [folder / "a.png", folder / "gone.png"], prompts, folder)
pictures = samforge.feature_pictures(
    samforge.open_bundle(bundle), [folder / "a.png"], folder / "pca.png", runs=1
)
with VideoWriter(folder / "in.mp4", (64, 64), frame_rate=Fraction(5)) as writer:
    for index, level in enumerate((10, 90, 200)):
        writer.write(np.full((64, 64, 3), level, np.uint8), Fraction(index, 5))
film = samforge.segment_video_file(
    segmenter,
    samforge.VideoPlan(
        video=folder / "in.mp4", out=folder / "out.mp4", text=("star",), thresholds=thresholds
    ),
)
print(json.dumps({{
    "intact": report.problem is None,
    "images": [row.accuracy.images for row in rows],
    "speeds": [(row.batch, row.prompts) for row in speeds],
    "found": [one.image.name for one in found.images],
    "failed": [(one.image.name, one.kind) for one in found.failures],
    "cells": pictures.images[0].cells_hw,
    "frames": film.frames,
}}))
"""


def run(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", NO_SHELL + script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_it_needs_no_shell(verb: str) -> None:
    assert run(f"import samforge; print(samforge.{verb}.__name__)").strip() == verb


def test_what_they_give(fake_bundle: Callable[..., samforge.Bundle], tmp_path: Path) -> None:
    bundle = fake_bundle("small")
    folder = tmp_path / "files"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(noise).save(folder / "a.png")
    printed = run(SCRIPT.format(bundle=str(bundle.root), folder=str(folder)))
    # One line: nothing else was printed.
    assert json.loads(printed) == {
        "intact": True,
        "images": [1, 1],
        "speeds": [[1, 1], [2, 1]],
        "found": ["a.png"],
        "failed": [["gone.png", "ImageError"]],
        "cells": [2, 2],
        "frames": 3,
    }
    assert {path.name for path in folder.iterdir()} >= {"pca.png", "out.mp4"}


def test_meshes_are_compared(tmp_path: Path) -> None:
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float64)
    people = {"pred_cam_t": np.array([0.0, 0.0, 3.0]), "faces": np.array([[0, 1, 2], [0, 2, 3]])}
    np.savez(tmp_path / "a.npz", pred_vertices=corners, **people)
    corners[3, 2] += 0.004  # metres: the root, which is the mean here, moves by a quarter
    np.savez(tmp_path / "b.npz", pred_vertices=corners, **people)
    script = f"""
import json, pathlib, samforge
folder = pathlib.Path({str(tmp_path)!r})
report = samforge.compare_mesh_files(folder / "a.npz", str(folder / "b.npz"), out=folder / "out")
found = report.comparison
print(json.dumps([
    found.vertices, round(found.root_relative.mean, 6), round(found.root_relative.max, 6),
    round(found.camera_space.max, 6), [view.name for view in report.views],
]))
"""
    assert json.loads(run(script)) == [4, 1.5, 3.0, 4.0, ["views.png", "turn.gif"]]
    with pytest.raises(SettingError, match="give out="):
        samforge.compare_mesh_files("a.npz", "b.npz", image="photo.jpg")


def test_no_bundle_at_all(fake_bundle: Callable[..., samforge.Bundle]) -> None:
    with pytest.raises(SettingError, match="compare got no bundle"):
        samforge.compare([])
    with pytest.raises(SettingError, match="bench got no bundle"):
        samforge.bench([])
    with pytest.raises(DamagedBundle, match=r"holds no verify/pictures\.npz"):
        samforge.verify(fake_bundle("unproven").root)


def test_the_machine_is_described() -> None:
    here = samforge.environment()
    assert here.usable
    assert here.samforge == samforge.__version__
    assert here.runtimes[0].name == "onnxruntime"
