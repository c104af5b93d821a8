"""Hashes, whole-or-nothing writes, and OSErrors that become explained ones."""

from __future__ import annotations

import errno
import math
from pathlib import Path

import pytest

from samforge.core.errors import OutputError
from samforge.core.files import (
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_text,
    free_bytes,
    output_errors,
    require_space,
    sha256_of,
    size_text,
)


def test_sha256_is_the_standard_one(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert sha256_of(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_atomic_write_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    atomic_write_text(path, "one")
    atomic_write_text(path, "zwölf")
    assert path.read_bytes() == "zwölf".encode()
    assert [entry.name for entry in path.parent.iterdir()] == ["a.txt"]


def test_atomic_write_keeps_the_old_content_when_it_fails(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    (target / "inside").mkdir(parents=True)
    with pytest.raises(OutputError, match="folder cannot be written"):
        atomic_write_bytes(target, b"a file cannot replace a folder")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_json_has_no_infinity(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    atomic_write_json(path, {"sqnr_db": math.inf, "cosine": 1.0, "shape": (1, 2)})
    assert path.read_text() == (
        '{\n  "sqnr_db": "inf",\n  "cosine": 1.0,\n  "shape": [\n    1,\n    2\n  ]\n}\n'
    )


def test_a_full_disk_says_what_is_needed() -> None:
    # /dev/full answers every write with ENOSPC: a real full disk, in small.
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with (
        pytest.raises(
            OutputError, match=r"No space is left to write /dev/full.*needs 3\.0 MiB"
        ) as caught,
        output_errors(full, needed_bytes=3 << 20),
        full.open("wb", buffering=0) as file,
    ):
        file.write(b"x")
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(
        OutputError, match=r"file/a\.json cannot be written: (Not a dir|File exists)"
    ):
        atomic_write_json(tmp_path / "file" / "a.json", {})


def test_a_read_only_place_says_to_choose_another() -> None:
    place = Path("/sys/kernel/samforge")
    if not place.parent.is_dir():
        pytest.skip("needs Linux")
    with pytest.raises(OutputError, match=r"Choose an output folder you may write to"):
        atomic_write_text(place / "a", "x")


def test_space_is_required_where_the_path_will_be(tmp_path: Path) -> None:
    path = tmp_path / "not" / "yet"
    require_space(path, 1)
    assert free_bytes(path) > 0
    with pytest.raises(OutputError, match=r"not/yet needs 1048576\.0 GiB, and .* are free there"):
        require_space(path, 1 << 50)


def test_sizes_for_people() -> None:
    assert [size_text(n) for n in (0, 640, 2048, 3 << 20, 5 << 29)] == [
        "0 bytes",
        "640 bytes",
        "2.0 KiB",
        "3.0 MiB",
        "2.5 GiB",
    ]
