"""What takes a place when it is whole: there is no moment without the old or the new."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest

from samforge.core import placing
from samforge.core.placing import (
    part_beside,
    parts_left,
    place_file,
    place_folder,
    sync_file,
    sync_folder,
)
from samforge.formats._growing_folder import GrowingFolder


def folder_of(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "file").write_text(content)
    return path


def test_a_part_has_a_hidden_name_of_its_own_that_file_systems_take(tmp_path: Path) -> None:
    names = {part_beside(tmp_path / "coco.json").name for _ in range(9)}
    assert len(names) == 9
    assert all(name.startswith(".coco.json.") and name.endswith(".part") for name in names)
    for name in ("x" * 255, "\u6587" * 85, os.fsdecode(b"\xff" * 255), "a.mp4"):
        part = part_beside(tmp_path / name, suffix=".mp4")
        part.write_bytes(b"1")
        assert (part.parent, part.suffix) == (tmp_path, ".mp4")


def test_a_folder_is_exchanged_without_a_gap(tmp_path: Path) -> None:
    """A reader that looks all the time never finds nothing, in fifty replacements."""
    place, missed, over = tmp_path / "yolo", [], threading.Event()
    folder_of(place, "0")

    def look() -> None:
        while not over.is_set():
            try:
                handle = os.open(place, os.O_RDONLY)
            except FileNotFoundError:
                missed.append(1)
            else:
                os.close(handle)

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for number in range(1, 51):
            growing = GrowingFolder(place)
            growing.write("file", str(number).encode())
            growing.finish()
    finally:
        over.set()
        reader.join()
    assert (place / "file").read_text() == "50"
    assert [path.name for path in tmp_path.iterdir()] == ["yolo"]
    assert missed == []


def test_where_folders_cannot_be_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing, "exchange", lambda one, other: False)
    place = folder_of(tmp_path / "yolo", "old")
    place_folder(folder_of(tmp_path / ".part", "new"), place)
    assert (place / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["yolo"]

    part = folder_of(tmp_path / ".part", "newer")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self == part:
            raise OSError(28, "full")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="full"):
        place_folder(part, place)
    assert (place / "file").read_text() == "new"


@pytest.mark.parametrize("kind", ["file", "link", "dangling"])
def test_what_is_no_folder_is_replaced_and_not_followed(kind: str, tmp_path: Path) -> None:
    place, other = tmp_path / "yolo", folder_of(tmp_path / "other", "mine")
    if kind == "file":
        place.write_text("old")
    else:
        place.symlink_to(other if kind == "link" else tmp_path / "nowhere")
    place_folder(folder_of(tmp_path / ".part", "new"), place)
    assert not place.is_symlink()
    assert (place / "file").read_text() == "new"
    assert (other / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "yolo"]


def test_it_is_on_the_disk_before_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, place = tmp_path / ".part", tmp_path / "coco.json"
    part.write_text("{}")
    said: list[tuple[str, bool]] = []
    fsync = os.fsync

    def watched(handle: int) -> None:
        said.append((Path(f"/proc/self/fd/{handle}").resolve().name, place.exists()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watched)
    place_file(part, place)
    assert said == [(".part", False), (tmp_path.name, True)]


def test_what_is_replaced_is_looked_at_and_stays_where_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, seen = folder_of(tmp_path / "yolo", "old"), []

    def refuse(old: Path) -> None:
        seen.append((old / "file").read_text())
        raise ValueError("not yours")

    for can in (True, False):
        if not can:
            monkeypatch.setattr(placing, "exchange", lambda one, other: False)
        part = folder_of(tmp_path / f".part {can}", "new")
        with pytest.raises(ValueError, match="not yours"):
            place_folder(part, place, check=refuse)
        assert (place / "file").read_text() == "old"
        assert (part / "file").read_text() == "new"
    assert seen == ["old", "old"]


def test_a_file_that_windows_is_to_flush_is_opened_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FlushFileBuffers wants GENERIC_WRITE, and folders cannot be opened there."""
    path, modes = tmp_path / "file", []
    path.write_text("{}")

    def watched(handle: int) -> None:
        modes.append(fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE)

    monkeypatch.setattr(os, "fsync", watched)
    for system in ("posix", "nt"):
        sync_file(path, system=system)
        sync_folder(tmp_path, system=system)
    assert modes == [os.O_RDONLY, os.O_RDONLY, os.O_RDWR]
    assert path.read_text() == "{}"


def test_only_its_own_parts_are_what_a_place_has_left(tmp_path: Path) -> None:
    place = tmp_path / "a+(b).json"
    own = [part_beside(place), part_beside(place)]
    others = (
        ".a+(b).json.part",
        ".a+(b).json.1234567.part",
        ".aa+(b).json.12345678.part",
        ".x.part",
    )
    for path in (*own, part_beside(tmp_path / "other"), *(tmp_path / name for name in others)):
        path.write_text("")
    assert sorted(parts_left(place)) == sorted(own)
    long = tmp_path / ("x" * 255)
    own = [part_beside(long)]
    own[0].write_text("")
    assert parts_left(long) == own
