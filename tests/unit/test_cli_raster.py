"""``samforge raster``: its files, what it prints, what it refuses, and how it goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio.raw
import pytest
import shapely
from raster_oracle import Numbers, Oracle, oracle_of, write_numbers

import samforge
from samforge.apps import cli

Capture = pytest.CaptureFixture[str]
Make = Callable[..., samforge.Bundle]
SIZE = (150, 200)


@pytest.fixture
def numbers() -> Numbers:
    numbers = np.zeros(SIZE, np.int64)
    numbers[30:60, 20:120], numbers[80:120, 50:70] = 1, 2
    return numbers


@pytest.fixture
def oracle(numbers: Numbers, monkeypatch: pytest.MonkeyPatch) -> Oracle:
    """Takes the model's place behind the command."""
    oracle = oracle_of(numbers, labels={2: "other"})
    monkeypatch.setattr("samforge.load", lambda bundle, **_: oracle, raising=False)
    return oracle


@pytest.fixture
def words(numbers: Numbers, fake_bundle: Make, tmp_path: Path) -> tuple[str, ...]:
    raster = write_numbers(tmp_path / "in.tif", numbers)
    return (str(fake_bundle().root), str(raster), "--window", "64", "--overlap", "16")


def _raster(words: tuple[str, ...], *more: object) -> int:
    return cli.main(["raster", *words, *map(str, more)])


def test_each_object_comes_once_in_every_file(
    words: tuple[str, ...], oracle: Oracle, tmp_path: Path, capsys: Capture
) -> None:
    outs = [tmp_path / f"out{suffix}" for suffix in (".gpkg", ".geojson")]
    asked = ("--text", "thing", "--text", "other", "--threshold-for", "other=0.2")
    given = [word for out in outs for word in ("--out", out)]
    given += ["--preview", tmp_path / "out.png"]
    assert _raster(words, *asked, *given, "--json") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    report = json.loads(captured.out)
    assert (report["command"], report["ok"]) == ("raster", True)
    assert report["out"] == [str(one) for one in outs]
    assert (report["crs"], report["area_unit"], report["size_hw"]) == ("EPSG:32633", "m2", [*SIZE])
    assert report["windows"] == {"count": 12, "without_data": 0, "resumed": 0, "failed": 0}
    found = report["objects"]
    assert (found["count"], found["sources"]) == (2, {"joined": 2})
    assert found["phrases"]["thing"] == {"objects": 1, "area": 750.0, "best_score": 0.9}
    assert found["phrases"]["other"]["area"] == 200.0
    for out in outs:
        info, _, geometries, columns = pyogrio.raw.read(out)
        table = dict(zip(info["fields"], columns, strict=True))
        assert sorted(table["label"]) == ["other", "thing"]
        assert len(shapely.from_wkb(geometries)) == 2
    shown = samforge.read_image(tmp_path / "out.png").astype(int)
    assert shown.shape == (*SIZE, 3)
    # The first phrase is orange: around rows 30 to 60 and columns 20 to 120, and nowhere else.
    orange = np.abs(shown - (230, 159, 0)).max(axis=2) < 3
    rows, columns = np.nonzero(orange)
    edges = (rows.min(), rows.max(), columns.min(), columns.max())
    assert edges == pytest.approx((30, 60, 20, 120), abs=2)
    assert not orange[35:55, 25:115].any()
    about = json.loads(outs[1].read_text(encoding="utf-8"))["info"]
    assert about["phrases"] == {"thing": 0.5, "other": 0.2}
    assert about["raster"] == "in.tif"
    assert [one.name for one in tmp_path.glob("*.windows")] == []


def test_what_people_read(
    words: tuple[str, ...], oracle: Oracle, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out.gpkg"
    assert _raster(words, "--text", "thing", "--out", out) == 0
    text = capsys.readouterr().out
    assert "in.tif: 200 x 150 pixels, EPSG:32633, 12 windows of 64 pixels" in text
    assert "area, m2" in text
    assert "750.0" in text
    assert "Outlines: 1 joined." in text
    # A file of its own is written over, another's is not.
    assert _raster(words, "--text", "thing", "--out", out) == 0
    out.write_bytes(b"somebody's")
    capsys.readouterr()
    assert _raster(words, "--text", "thing", "--out", out) == 6
    assert "--overwrite" in capsys.readouterr().err
    assert _raster(words, "--text", "thing", "--out", out, "--overwrite") == 0


def test_windows_that_fail_are_named_and_tried_again(
    words: tuple[str, ...], oracle: Oracle, tmp_path: Path, capsys: Capture
) -> None:
    oracle.failing = lambda call: call == 3
    asked = ("--text", "thing", "--no-coarse", "--out", tmp_path / "out.gpkg")
    assert _raster(words, *asked) == 1
    captured = capsys.readouterr()
    assert "ItemError: Window 0,3 (136, 0, 200, 64): RuntimeError: the device" in captured.err
    assert "1 of 12 windows failed" in captured.err
    assert "out.gpkg.windows" in captured.err
    assert _raster(words, *asked, "--json") == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert report["windows"]["resumed"] == 11


def test_ctrl_c_says_what_is_kept(
    words: tuple[str, ...], oracle: Oracle, tmp_path: Path, capsys: Capture
) -> None:
    def stop(call: int) -> bool:
        if call == 5:
            raise KeyboardInterrupt
        return False

    oracle.failing = stop
    out = tmp_path / "out.gpkg"
    assert _raster(words, "--text", "thing", "--no-coarse", "--out", out) == 130
    assert "keeps the windows that are done" in capsys.readouterr().err
    assert not out.exists()
    oracle.failing = lambda call: False
    assert _raster(words, "--text", "thing", "--no-coarse", "--out", out, "--json") == 0
    assert json.loads(capsys.readouterr().out)["windows"]["resumed"] == 5


@pytest.mark.parametrize(
    ("more", "status", "message"),
    [
        (("--out", "out.shp"), 2, "ends in .gpkg, .parquet, .geojson, got out.shp"),
        (("--out", "out.gpkg", "--bands", "7"), 2, "from 1 to 3, got 7"),
        (("--out", "out.gpkg", "--bands", "red"), 2, "--bands 3,2,1"),
        (("--out", "out.gpkg", "--stretch", "9,3"), 2, "--stretch 0,3000"),
        (("--out", "out.gpkg", "--extent", "1,2,3"), 2, "left,bottom,right,top"),
        (("--out", "out.gpkg", "--extent", "1,2,3,4"), 2, "outside the raster"),
        (("--out", "out.gpkg", "--overlap", "40"), 2, "overlap by 1 to 32"),
        (("--out", "out.gpkg", "--crs", "nonsense"), 2, "EPSG:32633"),
        (("--out", "out.gpkg", "--threshold-for", "roof=0.2"), 2, "not looked for"),
    ],
)
def test_what_is_refused(
    words: tuple[str, ...],
    oracle: Oracle,
    more: tuple[str, ...],
    status: int,
    message: str,
    *,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _raster(words, "--text", "thing", *more) == status
    assert message in capsys.readouterr().err
    assert oracle.calls == 0
    assert not list(tmp_path.glob("out*"))


def test_a_real_bundle_runs_on_a_picture(
    fake_bundle: Make, tmp_path: Path, capsys: Capture
) -> None:
    """Graphs whose answers mean nothing, but whose masks are masks."""
    raster = write_numbers(tmp_path / "in.tif", np.arange(40 * 60).reshape(40, 60) * 100)
    words = (str(fake_bundle().root), str(raster), "--text", "star", "--threshold", "0.1")
    assert _raster(words, "--out", tmp_path / "out.parquet", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["window"] == 28
    assert report["windows"]["count"] == 6
    assert {stage["stage"] for stage in report["stages"]} >= {"read", "vision", "detector"}
