"""The programs of examples/ run as they stand, and print what is so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import samforge
from samforge.core.targets import QUANTIZED
from samforge.media import write_png
from samforge.models.tiny import draw_scene

FOLDER = Path(__file__).resolve().parents[2] / "examples"


def run(name: str, *words: object, status: int = 0) -> str:
    command = [sys.executable, "-W", "error", str(FOLDER / f"{name}.py"), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    return done.stdout


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    path = tmp_path / "scene.png"
    write_png(path, draw_scene(11, split="demo").image)
    return path


def test_every_program_is_listed_and_tested() -> None:
    programs = {path.stem for path in FOLDER.glob("*.py")}
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    source = Path(__file__).read_text(encoding="utf-8")
    assert all(f"[`{name}.py`]({name}.py)" in page for name in programs)
    assert all(
        f'run("{name}"' in source or f'run(\n        "{name}"' in source for name in programs
    )


@pytest.mark.parametrize(
    "path", sorted((FOLDER.parent / "recipes").glob("*.toml")), ids=lambda path: path.stem
)
def test_every_recipe_is_usable_and_says_how(path: Path) -> None:
    recipe = samforge.Recipe.from_toml(path)
    assert f"samforge build recipes/{path.name}" in path.read_text(encoding="utf-8")
    assert recipe.precision not in QUANTIZED or "--calibration" in path.read_text(encoding="utf-8")


def test_count(tiny_bundle: samforge.Bundle, scene: Path) -> None:
    lines = run("count", tiny_bundle.root, scene, "red star", "white ring").splitlines()
    assert lines[0].startswith("red star: 2 found, [")
    assert lines[1].startswith("white ring: 0 found, [] pixels, best 0.0")


def test_folder_to_coco(tiny_bundle: samforge.Bundle, scene: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    out = tmp_path / "found.json"
    printed = run("folder_to_coco", tiny_bundle.root, tmp_path, out, "red star", status=1)
    assert printed.startswith(f"1 pictures in {out}, 1 left out\nbroken.png: ")
    found = json.loads(out.read_text())
    assert [image["file_name"] for image in found["images"]] == ["scene.png"]
    assert len(found["annotations"]) == 2


def test_frames(tiny_bundle: samforge.Bundle, scene: Path) -> None:
    lines = run("frames", tiny_bundle.root, scene, "red star").splitlines()
    assert [line.partition(":")[0] for line in lines] == [f"frame {index}" for index in range(4)]
    assert len(set(lines)) == 4  # it moves
    assert lines[0].startswith("frame 0: 2 at ")


def test_check_in_ci(tiny_bundle: samforge.Bundle) -> None:
    printed = run("check_in_ci", tiny_bundle.root, tiny_bundle.root, "--data", "scenes:2")
    assert "F1 of the objects 1.0000, loss of cgF1 +0.0000" in printed
