"""Runs that fail or stop: what is named, what is kept, and how they go on."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from raster_oracle import (
    oracle_of,
    plan_of,
    scene,
    segment,
    write_numbers,
)

import samforge
from samforge.core.errors import (
    OutputError,
    SettingError,
)


class TestFailures:
    def test_windows_that_fail_are_named_and_tried_again(self, tmp_path: Path) -> None:
        numbers = scene()
        path = write_numbers(tmp_path / "in.tif", numbers)
        out = tmp_path / "out.geojson"
        plan = plan_of(path, outs=(out,), coarse=False)
        oracle = oracle_of(numbers, failing=lambda call: call == 5)
        result = segment(oracle, plan)
        (failure,) = result.failures
        assert (failure.window, failure.box) == ("1,1", (48, 48, 112, 112))
        assert (failure.kind, failure.exit_code) == ("ItemError", 1)
        assert failure.message == "RuntimeError: the device was lost"
        report = json.loads(out.read_text(encoding="utf-8"))["report"]
        assert report["failed_windows"][0]["message"] == failure.message
        assert plan.ledger.exists()

        again = oracle_of(numbers)
        result = segment(again, plan)
        assert (again.calls, result.resumed, result.failures) == (1, 11, ())
        assert result.objects == 9
        assert not plan.ledger.exists()

    def test_a_stopped_run_goes_on_and_ends_with_the_same_file(self, tmp_path: Path) -> None:
        numbers = scene()
        path = write_numbers(tmp_path / "in.tif", numbers)
        out = tmp_path / "out.geojson"
        plan = plan_of(path, outs=(out,), coarse=False)
        segment(oracle_of(numbers), plan)
        unbroken = out.read_bytes()
        out.unlink()
        for stop in range(1, 12, 3):
            counted = iter(range(100))

            def done(counted: Any = counted, stop: int = stop) -> None:
                if next(counted) == stop:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                samforge.segment_raster(oracle_of(numbers), plan, done=done)  # type: ignore[arg-type]
            assert [one.name for one in tmp_path.glob("*out*")] == [plan.ledger.name]
        assert segment(oracle_of(numbers), plan).resumed == 11
        assert out.read_bytes() == unbroken
        assert not plan.ledger.exists()

    def test_what_another_run_kept_is_not_mixed_in(self, tmp_path: Path) -> None:
        numbers = scene()
        path = write_numbers(tmp_path / "in.tif", numbers)
        plan = plan_of(path, coarse=False)
        segment(oracle_of(numbers, failing=lambda call: call == 2), plan)
        other = oracle_of(numbers, digest="another bundle")
        with pytest.raises(SettingError, match=r"of another run.*--restart"):
            segment(other, plan)
        assert segment(other, replace(plan, restart=True)).resumed == 0

    def test_a_damaged_tile_is_named_and_the_others_are_done(self, tmp_path: Path) -> None:
        numbers = np.kron(np.arange(1, 17).reshape(4, 4), np.ones((64, 64), np.int64))
        numbers[::64] = numbers[:, ::64] = numbers[63::64] = numbers[:, 63::64] = 0
        path = write_numbers(
            tmp_path / "in.tif", numbers, tiled=True, blockxsize=64, blockysize=64, compress="lzw"
        )
        content = path.read_bytes()
        path.write_bytes(content[:-200] + b"\xff" * 200)  # the last tile
        result = segment(oracle_of(numbers), plan_of(path, coarse=False))
        assert result.failures
        assert {one.kind for one in result.failures} == {"ImageError"}
        assert "damaged" in result.failures[0].message
        assert result.objects >= 8

    def test_a_disk_that_fills_up_loses_no_window(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        numbers = scene()
        path = write_numbers(tmp_path / "in.tif", numbers)
        plan = plan_of(path, outs=(tmp_path / "out.geojson",), coarse=False)

        def full(*_: object) -> None:
            raise OutputError("No space is left.")

        with monkeypatch.context() as patch:
            patch.setattr("samforge.formats.geo_json.GeoJsonWriter.finish", full)
            with pytest.raises(OutputError, match="No space is left"):
                segment(oracle_of(numbers), plan)
        assert [one.name for one in tmp_path.glob("*out*")] == [plan.ledger.name]
        result = segment(oracle_of(numbers), plan)
        assert (result.resumed, result.windows, result.objects) == (12, 12, 9)

    def test_a_folder_that_is_not_there_ends_the_run(self, tmp_path: Path) -> None:
        path = write_numbers(tmp_path / "in.tif", scene())
        with pytest.raises(OutputError, match="cannot be written"):
            segment(oracle_of(scene()), plan_of(path, outs=(tmp_path / "no" / "out.gpkg",)))


class TestLedger:
    def test_a_second_run_is_refused_and_takes_nothing(self, tmp_path: Path) -> None:
        numbers = scene()
        path = write_numbers(tmp_path / "in.tif", numbers)
        plan = plan_of(path, outs=(tmp_path / "out.geojson",), coarse=False)
        segment(oracle_of(numbers), plan)
        unbroken = plan.outs[0].read_bytes()
        refused: list[str] = []

        def intrude() -> None:
            if refused:
                return
            for restart in (False, True):
                with pytest.raises(OutputError, match="Another run is writing into") as caught:
                    segment(oracle_of(numbers), replace(plan, restart=restart))
                refused.append(str(caught.value))

        samforge.segment_raster(oracle_of(numbers), plan, done=intrude)  # type: ignore[arg-type]
        assert len(refused) == 2
        assert plan.outs[0].read_bytes() == unbroken

    @pytest.mark.parametrize("restart", [False, True])
    def test_what_a_killed_run_had_begun_is_removed(self, restart: bool, tmp_path: Path) -> None:
        numbers = scene()
        path = write_numbers(tmp_path / "in.tif", numbers)
        outs = tuple(tmp_path / f"out{end}" for end in (".geojson", ".gpkg", ".parquet"))
        plan = plan_of(path, outs=outs, coarse=False)
        program = (
            "import json, os, signal, sys; sys.path[:0] = json.loads(sys.argv[1])\n"
            "from pathlib import Path\n"
            "import samforge\n"
            "from raster_oracle import oracle_of, plan_of, scene\n"
            "plan = plan_of(Path(sys.argv[2]), outs=tuple(map(Path, sys.argv[3:])), coarse=False)\n"
            "seen = []\n"
            "def done():\n"
            "    seen.append(1)\n"
            "    if len(seen) == 7: os.kill(os.getpid(), signal.SIGKILL)\n"
            "samforge.segment_raster(oracle_of(scene()), plan, done=done)\n"
        )
        words = [sys.executable, "-c", program, json.dumps(sys.path), path, *outs]
        assert subprocess.run(list(map(str, words)), check=False).returncode == -9
        assert len([one for one in tmp_path.iterdir() if one.name.endswith(".part")]) == 3
        other = tmp_path / ".out.gpkg.0123abcd.part"  # of somebody else
        other.write_text("mine")
        result = segment(oracle_of(numbers), replace(plan, restart=restart))
        assert (result.resumed, result.objects) == (0 if restart else 7, 9)
        assert sorted(one.name for one in tmp_path.iterdir()) == [
            other.name, "in.tif", "out.geojson", "out.gpkg", "out.parquet",
        ]  # fmt: skip

    def test_another_version_is_not_mixed_in(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        numbers = scene()
        path = write_numbers(tmp_path / "in.tif", numbers)
        plan = plan_of(path, coarse=False)
        segment(oracle_of(numbers, failing=lambda call: call == 2), plan)
        with monkeypatch.context() as patch:
            patch.setattr("samforge.rasters.plan.__version__", "9.9.9")
            with pytest.raises(SettingError, match="the version of samforge"):
                segment(oracle_of(numbers), plan)
        with closing(sqlite3.connect(plan.ledger)) as base:
            base.execute("PRAGMA user_version = 7")
        with pytest.raises(OutputError, match=r"version 7, and this one has 1\..*--restart"):
            segment(oracle_of(numbers), plan)
        assert segment(oracle_of(numbers), replace(plan, restart=True)).failures == ()

    @pytest.mark.parametrize("content", [b"", b"no ledger at all" * 300])
    def test_what_is_no_ledger_is_left_alone(self, content: bytes, tmp_path: Path) -> None:
        numbers = scene()
        plan = plan_of(write_numbers(tmp_path / "in.tif", numbers), coarse=False)
        plan.ledger.write_bytes(content)
        if not content:  # killed while it began
            assert segment(oracle_of(numbers), plan).objects == 9
            return
        for restart in (False, True):
            with pytest.raises(OutputError, match="is no ledger of samforge, or is damaged"):
                segment(oracle_of(numbers), replace(plan, restart=restart))
        assert plan.ledger.read_bytes() == content

    def test_a_ledger_of_labels_is_left_alone(self, tmp_path: Path) -> None:
        from samforge.labelling.ledger import Ledger

        plan = plan_of(write_numbers(tmp_path / "in.tif", scene()), coarse=False)
        with Ledger(plan.ledger) as labels:
            labels.note("mine", "still there")
        for restart in (False, True):
            with pytest.raises(OutputError, match="is no ledger of this kind"):
                segment(oracle_of(scene()), replace(plan, restart=restart))
        with Ledger(plan.ledger) as labels:
            assert labels.noted("mine") == "still there"
