"""``samforge label`` on the command line: what it prints, its exit statuses, its words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import samforge
from samforge.apps import cli
from samforge.apps.cli.label_output import _Lines, duration_text


@pytest.fixture
def words(fake_bundle: Callable[..., samforge.Bundle], tmp_path: Path) -> list[str]:
    """A command on three pictures."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 256, (30, 40, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    bundle = str(fake_bundle("small").root)
    out = str(tmp_path / "out")
    return ["label", bundle, str(folder), "--out", out, "--threshold", "0.2"]


CLASSES = ["--class", "circle=red circle,circle", "--class", "star"]


def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_it_says_what_it_did(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*words, *CLASSES, "--format", "coco", "--format", "yolo", "--review"]) == 0
    out = capsys.readouterr().out
    assert "3 pictures" in out
    assert "3 labelled in" in out
    assert "coco.json\n  yolo/\n" in out
    assert "most unsure first: " in out
    assert (tmp_path / "out/review/index.html").is_file()
    assert cli.main([*words, *CLASSES]) == 0
    assert "All 3 were labelled before." in capsys.readouterr().out


def test_json_names_files_counts_and_failures(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos/1.png").write_bytes(b"junk")
    assert cli.main([*words, *CLASSES, "--json"]) == 2
    envelope = printed(capsys)
    assert (envelope["command"], envelope["ok"]) == ("label", False)
    result = envelope["result"]
    assert (result["pictures"], result["labelled"]) == (2, 2)
    assert list(result["objects"]) == ["circle", "star"]
    assert result["files"] == [str(tmp_path / "out/coco.json")]
    assert [one["name"] for one in result["failures"]] == ["1.png"]
    assert envelope["error"]["kind"] == "ImageError"


def test_a_failure_is_told_and_the_rest_is_done(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos/1.png").write_bytes(b"junk")
    assert cli.main([*words, *CLASSES]) == 2
    streams = capsys.readouterr()
    assert "2 pictures" in streams.out
    assert "1.png" in streams.err
    assert "1 without labels" in streams.err


def test_a_dry_run_writes_nothing(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos/notes.txt").write_text("mine")
    assert cli.main([*words, *CLASSES, "--dry-run", "--limit", "2"]) == 0
    streams = capsys.readouterr()
    assert "2 of 3 in the source; 0 labelled already, 2 to do, 3 phrases each." in streams.out
    assert "red circle, circle" in streams.out
    assert "notes.txt" in streams.err
    assert not (tmp_path / "out").exists()
    assert cli.main([*words, *CLASSES, "--dry-run", "--json"]) == 0
    assert printed(capsys)["plan"]["chosen"] == 3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "Say what to label"),
        (["--class", "a", "--ontology", "b.toml"], "Say what to label"),
        (["--ontology", "gone.toml"], "gone.toml cannot be read"),
        (["--class", "a", "--format", "yaml"], "There is no format 'yaml'"),
        (["--class", "a", "--against", "x"], "Add --review"),
        (["--class", "a", "--class", "b=A"], "have one phrase"),
        (["--class", "a", "--jobs", "0"], "jobs"),
    ],
)
def test_words_that_are_not_usable(
    more: list[str], message: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*words, *more]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_help_names_every_format(capsys: pytest.CaptureFixture[str]) -> None:
    from samforge.formats import LABEL_FORMATS

    assert cli.main(["label", "--help"]) == 0
    told = capsys.readouterr().out.replace(",", " ").replace(". ", " ").split()
    assert [name for name in LABEL_FORMATS if name not in told] == []


def test_another_ontology_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*words, *CLASSES]) == 0
    assert cli.main([*words, "--class", "ring"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "the classes circle, star then, ring now" in told
    assert cli.main([*words, "--class", "ring", "--restart"]) == 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7000, "117 min"),
        (7199, "2 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_times_for_people(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_logs_say_how_much_time_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from samforge.apps.cli import label_output

    now = 0.0
    monkeypatch.setattr(label_output.time, "monotonic", lambda: now)
    lines = _Lines(silent=False)
    for done, moment in ((400, 5.0), (500, 10.0), (600, 45.0), (610, 46.0), (1000, 85.0)):
        now = moment
        lines.count(done, 1400)
    # The 400 of an earlier run took no time of this one.
    assert capsys.readouterr().err.splitlines() == [
        "600 of 1,400 labelled, 5.0 a second, 3 min left",
        "1,000 of 1,400 labelled, 7.5 a second, 53 s left",
    ]
