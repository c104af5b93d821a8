"""``samforge build``: what it prints and leaves, and what it says to input it cannot use."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import samforge
from samforge.apps import cli
from samforge.apps.cli.build import default_out, next_command, recipe_from_options
from samforge.apps.cli.progress import BuildProgress
from samforge.apps.cli.steps import print_steps
from samforge.core.errors import MissingExtra, SettingError
from samforge.core.manifest import StepResult
from samforge.models import tiny

Capture = pytest.CaptureFixture[str]
Snapshot = Callable[[Path], dict[str, bytes]]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder with the tiny configuration and tokenizer, and half of a download."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    config = json.loads(tiny.CONFIG_PATH.read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "sam3"}))
    shutil.copy(tiny.TOKENIZER_PATH, folder / "tokenizer.json")
    header = b'{"w":{"dtype":"F32","shape":[1000],"data_offsets":[0,4000]}}'
    (folder / "model.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + bytes(100)
    )
    return folder


def test_options_override_the_recipe_file(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(
        'image_size = 448\nseed = 3\nparts = ["vision"]\n[gates]\nonnx_max_abs = 1e-5\n'
    )
    recipe = recipe_from_options(str(file), {"image_size": 224, "random_weights": True})
    assert (recipe.image_size, recipe.seed, recipe.parts) == (224, 3, ("vision",))
    assert recipe.random_weights
    assert recipe.gates.onnx_max_abs == 1e-5
    assert recipe_from_options("tiny", {"seed": 5}) == samforge.Recipe(model="tiny", seed=5)


def test_a_recipe_that_is_not_there_is_named() -> None:
    with pytest.raises(SettingError, match=r"The recipe nope\.toml cannot be read"):
        recipe_from_options("nope.toml", {})


@pytest.mark.parametrize(
    ("model", "out"),
    [("tiny", "build/tiny"), ("facebook/sam3", "build/sam3"), ("/data/my-sam/", "build/my-sam")],
)
def test_the_default_folder_is_the_models_name(model: str, out: str) -> None:
    assert default_out(samforge.Recipe(model=model)) == Path(out)


def test_a_weights_file_names_the_folder_without_its_suffix(tmp_path: Path) -> None:
    (tmp_path / "sam3.pt").touch()
    recipe = samforge.Recipe(model=str(tmp_path / "sam3.pt"))
    assert default_out(recipe) == Path("build/sam3")


def test_the_command_passes_on_every_option(
    monkeypatch: pytest.MonkeyPatch, tiny_bundle: samforge.Bundle, capsys: Capture, tmp_path: Path
) -> None:
    """The build itself is the fixture's: here is what goes in and what is printed."""
    calls = []

    def build(recipe: samforge.Recipe, **rest: object) -> samforge.Bundle:
        calls.append((recipe, rest["out"], rest["until"]))
        return tiny_bundle

    monkeypatch.setattr(samforge, "build", build, raising=False)
    capsys.readouterr()  # patching imports torch, which may log
    tokenizer = tmp_path / "tokenizer.json"
    words = ["--target", "onnxruntime", "--precision", "fp32", "--image-size", "224"]
    words += ["--part", "vision", "--part", "text", "--tokenizer", str(tokenizer)]
    words += [
        "--weak-evidence",
        "--until",
        "onnx",
        "--random-weights",
        "--seed",
        "7",
        "--out",
        str(tmp_path / "o"),
    ]
    assert cli.main(["build", "tiny", *words]) == 0
    recipe = samforge.Recipe(
        model="tiny",
        image_size=224,
        parts=("vision", "text"),
        tokenizer=tokenizer,
        random_weights=True,
        seed=7,
        gates=samforge.Gates(weak_evidence=True),
    )
    assert calls == [(recipe, tmp_path / "o", "onnx")]
    out, err = capsys.readouterr()
    assert err == ""
    for word in ("export", "onnx", "detector_boxes", "cosine", "1.000000", "inf"):
        assert word in out
    assert "resumed" not in out  # no step was
    assert str(tiny_bundle.root) in out
    assert next_command(tiny_bundle) in out

    assert cli.main(["build", "tiny", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert calls[1][1] == Path("build/tiny")
    assert (report["command"], report["ok"]) == ("build", True)
    assert report["bundle"] == str(tiny_bundle.root)
    assert [step["name"] for step in report["steps"]] == [
        *(["export", "fuse", "onnx"] * 4),
        "verify",
    ]
    assert report["evidence"]["weak_evidence"] is False
    assert report["evidence"]["objects"] >= 60
    assert len(report["evidence"]["intervals"]["box_iou"]) == 2
    assert report["bytes"] == sum(f.bytes for f in tiny_bundle.manifest.files.values())


def test_progress_is_plain_lines_away_from_a_terminal(
    tiny_bundle: samforge.Bundle, capsys: Capture
) -> None:
    first, second = tiny_bundle.manifest.steps[:2]
    for as_json in (False, True):
        with BuildProgress(as_json=as_json) as progress:
            progress.started("export", "vision", 0, 2)
            progress.finished(first)
            progress.started("fuse", "vision", 1, 2)
            progress.finished(replace(second, resumed=True))
        out, err = capsys.readouterr()
        assert out == ""
        lines = f"[1/2] export vision: {first.seconds:.1f} s\n[2/2] fuse vision: taken over\n"
        assert err == ("" if as_json else lines)


@pytest.mark.parametrize("resumed", [False, True])
def test_the_table_of_steps_fits_80_columns(
    resumed: bool, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The longest names of steps and parts stay whole, figures of every width beside them."""
    monkeypatch.setenv("COLUMNS", "80")
    figures = {"gated": 1.2e-7, "sqnr_db": 142.25, "cosine": 0.999999999}
    step = StepResult(
        name="quantize",
        part="memory_encoder_text",
        seconds=1234.5,
        bytes=900 * 2**20,
        peak_gib=12.3,
        resumed=resumed,
        fidelity=(figures,),
    )
    print_steps([step, replace(step, name="calibrate-tracker", part=None)])
    out = capsys.readouterr().out
    lines = out.splitlines()[1:-1]
    assert max(map(len, lines)) <= 80
    words = [word for line in lines for word in line.split()]
    assert {"calibrate-", "memory_encoder_text", "142.2", "12.3"} <= set(words)
    assert ("tracker*" in words) is ("* resumed" in out) is resumed


def test_a_size_that_is_no_multiple_of_14(
    bundle_copy: Path, capsys: Capture, snapshot: Snapshot
) -> None:
    before = snapshot(bundle_copy)
    assert cli.main(["build", "tiny", "--image-size", "225", "--out", str(bundle_copy)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "SettingError: image size 225 is no multiple of 14 pixels" in err
    assert "The nearest sizes are 224 and 238." in err
    assert snapshot(bundle_copy) == before


def test_an_unknown_model(bundle_copy: Path, capsys: Capture, snapshot: Snapshot) -> None:
    before = snapshot(bundle_copy)
    assert cli.main(["build", "tinny", "--out", str(bundle_copy)]) == 4
    err = capsys.readouterr().err
    assert "UnknownModel: There is no model 'tinny', and no such file or folder." in err
    assert "Give 'tiny'" in err
    assert snapshot(bundle_copy) == before


def test_a_half_downloaded_checkpoint(
    checkpoint: Path, bundle_copy: Path, capsys: Capture, snapshot: Snapshot
) -> None:
    before = snapshot(bundle_copy)
    assert cli.main(["build", str(checkpoint), "--out", str(bundle_copy)]) == 4
    err = capsys.readouterr().err
    assert f"CheckpointError: {checkpoint / 'model.safetensors'} cannot be read as weights" in err
    assert "delete the file" in err
    assert snapshot(bundle_copy) == before


def test_a_folder_that_is_someone_elses(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    words = ["build", "tiny", "--random-weights", "--out", str(tmp_path), "--json"]
    assert cli.main(words) == 6
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert report["error"]["kind"] == "OutputError"
    assert str(tmp_path) in report["error"]["message"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_unwritable_folder(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / "bundle"
    assert cli.main(["build", "tiny", "--random-weights", "--out", str(out)]) == 6
    err = capsys.readouterr().err
    assert f"OutputError: {out} cannot be written: Not a directory." in err
    assert (tmp_path / "file").read_text() == "mine"


def test_an_unknown_target(tmp_path: Path, capsys: Capture) -> None:
    assert cli.main(["build", "tiny", "--target", "onnx", "--out", str(tmp_path / "b")]) == 2
    assert "allowed are cpu, " in capsys.readouterr().err


def test_an_unknown_part_or_stage(tmp_path: Path, capsys: Capture) -> None:
    words = ["build", "tiny", "--random-weights", "--out", str(tmp_path / "o")]
    assert cli.main([*words, "--part", "vison"]) == 2
    assert "sam3 has no part vison. Its parts: vision," in capsys.readouterr().err
    assert cli.main([*words, "--until", "engine"]) == 2
    assert "can stop at: export, onnx" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_a_process_keeps_errors_out_of_standard_output(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "samforge.apps.cli", "build", "tiny", "--image-size", "10"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "FORCE_COLOR": ""},
        check=False,
    )
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.startswith("SettingError: image size 10 is no multiple of 14 pixels")
    assert "\x1b" not in run.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(samforge, "import_module", missing)
    with pytest.raises(MissingExtra, match=r"torch is not installed.*'samforge\[build\]'"):
        samforge.__getattr__("build")
    with pytest.raises(ModuleNotFoundError, match="No module named 'torch'"):
        samforge.__getattr__("load")
