"""Staged builds: resumed step by step, published whole, and never over something else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import samforge
from samforge.core.bundle import open_bundle
from samforge.core.errors import DamagedBundle, OutputError, SamforgeWarning, SettingError
from samforge.core.manifest import Manifest, StepResult, sealed
from samforge.core.staging import Staging, step_key

RESULT = StepResult(name="export", part=None, seconds=2.0, bytes=4, peak_gib=0.5, resumed=False)
INCLUDE = ("parts", "tokenizer")


def _fill(staging: Staging, files: dict[str, bytes]) -> None:
    for path, content in files.items():
        staging.path(path).write_bytes(content)


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_publish_leaves_the_bundle_and_nothing_else(
    tmp_path: Path, manifest: Manifest, bundle_files: dict[str, bytes]
) -> None:
    with Staging.open(tmp_path / "out") as staging:
        _fill(staging, bundle_files)
        staging.path("work/vision.pt2").write_bytes(b"work")
        staging.record("export/vision", "key", ["work/vision.pt2"], RESULT)
        assert _names(tmp_path) == [".out.building"]
        assert staging.publish(manifest, [*INCLUDE, "parts/vision/vision.onnx"]) == tmp_path / "out"
    assert _names(tmp_path) == ["out"]
    assert _names(tmp_path / "out") == ["manifest.json", "parts", "tokenizer"]
    assert sorted(open_bundle(tmp_path / "out").manifest.files) == sorted(bundle_files)


def test_a_finished_step_is_found_again(tmp_path: Path) -> None:
    with Staging.open(tmp_path / "out") as staging:
        assert staging.step("export", "key") is None
        staging.path("work/a").write_bytes(b"abcd")
        recorded = staging.record("export", "key", ["work/a"], RESULT)
    with Staging.open(tmp_path / "out") as staging:
        found = staging.step("export", "key")
        assert found == replace(recorded, result=replace(RESULT, resumed=True))
        assert found.outputs["work/a"].bytes == 4
        assert staging.step("export", "other key") is None
        assert staging.step("onnx", "key") is None


@pytest.mark.parametrize("content", [b"abcX", b"abc", None])
def test_a_step_whose_file_changed_runs_again(tmp_path: Path, content: bytes | None) -> None:
    with Staging.open(tmp_path / "out") as staging:
        path = staging.path("a")
        path.write_bytes(b"abcd")
        staging.record("export", "key", ["a"], RESULT)
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        assert staging.step("export", "key") is None


def test_recording_a_missing_file_fails(tmp_path: Path) -> None:
    with (
        Staging.open(tmp_path / "out") as staging,
        pytest.raises(OutputError, match="none cannot be written: No such file"),
    ):
        staging.record("export", "key", ["none"], RESULT)


def test_unreadable_records_start_afresh_with_a_warning(tmp_path: Path) -> None:
    with Staging.open(tmp_path / "out") as staging:
        staging.path("steps.json").write_text('{"version": 9, "steps": {}}')
    with pytest.warns(SamforgeWarning, match="starts from its first step: its version is 9"):
        Staging.open(tmp_path / "out").close()


def test_paths_stay_in_the_staging_folder(tmp_path: Path) -> None:
    with (
        Staging.open(tmp_path / "out") as staging,
        pytest.raises(SettingError, match=r"'\.\./x' leaves the bundle"),
    ):
        staging.path("../x")


def test_step_key_changes_with_each_cause_and_not_with_order() -> None:
    def key(name: str = "a", size: int = 14, weights: str = "0", torch: str = "2") -> str:
        return step_key(
            name, inputs={"w": weights}, settings={"size": size, "b": 1}, versions={"torch": torch}
        )

    keys = {key(), key(name="b"), key(size=28), key(weights="1"), key(torch="3")}
    assert len(keys) == 5
    reordered = step_key(
        "a", inputs={"w": "0"}, settings={"b": 1, "size": 14}, versions={"torch": "2"}
    )
    assert reordered == key()


def test_an_old_bundle_is_replaced(
    tmp_path: Path, manifest: Manifest, bundle_files: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    for model in ("first", "second"):
        with Staging.open(out) as staging:
            _fill(staging, bundle_files)
            staging.publish(replace(manifest, model=model), INCLUDE)
        assert open_bundle(out).manifest.model == model
    assert _names(tmp_path) == ["out"]


def test_an_empty_folder_is_taken(
    tmp_path: Path, manifest: Manifest, bundle_files: dict[str, bytes]
) -> None:
    (tmp_path / "out").mkdir()
    with Staging.open(tmp_path / "out") as staging:
        _fill(staging, bundle_files)
        staging.publish(manifest, INCLUDE)
    assert open_bundle(tmp_path / "out").manifest == sealed(
        replace(manifest, files=open_bundle(tmp_path / "out").manifest.files)
    )


def test_something_else_is_left_alone(tmp_path: Path) -> None:
    thesis = tmp_path / "out" / "thesis.tex"
    thesis.parent.mkdir()
    thesis.write_text("years")
    with pytest.raises(OutputError, match=r"out holds files and is not a samforge bundle"):
        Staging.open(thesis.parent)
    with pytest.raises(OutputError, match=r"thesis\.tex is a file"):
        Staging.open(thesis)
    with pytest.raises(OutputError, match="/ cannot be an output folder"):
        Staging.open("/")
    assert thesis.read_text() == "years"
    assert _names(tmp_path) == ["out"]


def test_what_appeared_meanwhile_is_left_alone(
    tmp_path: Path, manifest: Manifest, bundle_files: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    with Staging.open(out) as staging:
        _fill(staging, bundle_files)
        out.mkdir()
        (out / "notes").write_text("mine")
        with pytest.raises(OutputError, match="is not a samforge bundle"):
            staging.publish(manifest, INCLUDE)
    assert _names(out) == ["notes"]
    assert (tmp_path / ".out.building" / "parts/vision/vision.onnx").read_bytes() == b"onnx"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match=r"file/out cannot be written: Not a directory"):
        Staging.open(tmp_path / "file" / "out")
    with pytest.raises(OutputError, match="cannot be written"):
        Staging.open("/sys/kernel/samforge/out")


def test_a_manifest_that_would_not_open_is_not_published(
    tmp_path: Path, manifest: Manifest, bundle_files: dict[str, bytes]
) -> None:
    del bundle_files["parts/vision/vision.onnx.data"]
    with Staging.open(tmp_path / "out") as staging:
        _fill(staging, bundle_files)
        with pytest.raises(DamagedBundle, match="part vision needs"):
            staging.publish(manifest, INCLUDE)
        with pytest.raises(OutputError, match=r"report was to be published and is missing"):
            staging.publish(manifest, ["report"])
    assert _names(tmp_path) == [".out.building"]


def test_a_replacement_killed_between_its_renames_is_undone(
    tmp_path: Path, manifest: Manifest, bundle_files: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    with Staging.open(out) as staging:
        _fill(staging, bundle_files)
        staging.publish(manifest, INCLUDE)
    out.rename(tmp_path / ".out.replaced")
    Staging.open(out).close()
    assert open_bundle(out).manifest.model == "tiny"


def test_one_build_at_a_time(tmp_path: Path) -> None:
    with Staging.open(tmp_path / "out"):
        with pytest.raises(OutputError, match=rf"Another build \(process {os.getpid()}\)"):
            Staging.open(tmp_path / "out")
        Staging.open(tmp_path / "other").close()
    Staging.open(tmp_path / "out").close()


_BUILD = """
import sys, time
from samforge.core.manifest import StepResult
from samforge.core.staging import Staging

staging = Staging.open(sys.argv[1])
result = StepResult(name="export", part=None, seconds=9.0, bytes=4, peak_gib=None, resumed=False)
staging.path("parts/vision/vision.onnx").write_bytes(b"onnx")
staging.record("export", "key", ["parts/vision/vision.onnx"], result)
staging.path("tokenizer/tokenizer.json").write_bytes(b"half of i")
print("in the middle", flush=True)
time.sleep(60)
"""


def test_a_killed_build_resumes(
    tmp_path: Path, manifest: Manifest, bundle_files: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    environment = {**os.environ, "PYTHONPATH": str(Path(samforge.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", _BUILD, str(out)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as build:
        assert build.stdout is not None
        assert build.stdout.readline() == "in the middle\n"
        with pytest.raises(OutputError, match=rf"Another build \(process {build.pid}\)"):
            Staging.open(out)
        build.send_signal(signal.SIGKILL)
        assert build.wait() == -signal.SIGKILL
    assert not out.exists()
    with Staging.open(out) as staging:
        record = staging.step("export", "key")
        assert record is not None
        assert (record.result.resumed, record.result.seconds) == (True, 9.0)
        assert staging.step("tokenizer", "key") is None
        _fill(staging, bundle_files)
        staging.publish(manifest, INCLUDE)
    assert open_bundle(out).path("tokenizer/tokenizer.json").read_bytes() == b"{}"
    assert _names(tmp_path) == ["out"]
