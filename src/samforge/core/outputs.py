"""Users' files are not written over: what samforge wrote says so, and anything else stays."""

from __future__ import annotations

import re
import sqlite3
import struct
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

from samforge.core.errors import OutputError
from samforge.core.files import output_errors

SOFTWARE = "samforge"
"""Stands in every picture and video that samforge writes, where their formats name the software."""

_HEAD = 4096
_JSON = re.compile(rb'\s*\{\s*"info":\s*\{\s*"description":\s*"samforge ')
_MOST_INDEX = 2**28


def require_own(paths: Iterable[Path], *, overwrite: bool) -> None:
    """Make sure that no file is written over that samforge did not write.

    Args:
        paths: Files that a command is about to write.
        overwrite: Whether the user has allowed it.

    Raises:
        OutputError: One is somebody else's, or a folder.
    """
    for path in paths:
        with output_errors(path):
            if not path.exists() and not path.is_symlink():
                continue
            if path.is_dir():
                raise OutputError(f"{path} is a folder, and a file is to be written there.")
            if not overwrite and not is_own(path):
                raise OutputError(
                    f"{path} is there already, and samforge did not write it. Name another place, "
                    "move it away, or write over it with --overwrite."
                )


def is_own(path: Path) -> bool:
    """Whether samforge wrote a file: a picture, a video, a COCO file, or objects on a map.

    Raises:
        OSError: It cannot be read.
    """
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(_HEAD)
        if head.startswith(b"\x89PNG"):
            return b"tEXtSoftware\0" + SOFTWARE.encode() in head
        if head.startswith(b"GIF8"):
            return b"\x21\xfe" + bytes([len(SOFTWARE)]) + SOFTWARE.encode() in head
        if head[4:8] == b"ftyp":
            return SOFTWARE.encode() in _index_of_video(file)
        if head.startswith(b"PAR1"):
            return f"{SOFTWARE} ".encode() in _footer_of_parquet(file)
        if head.startswith(b"SQLite format 3\0"):
            return _describes_itself(path)
        return _JSON.match(head) is not None


def _footer_of_parquet(file: BinaryIO) -> bytes:
    """The notes at the end of a Parquet file, whose length stands before its last four bytes."""
    size = file.seek(0, 2)
    file.seek(max(0, size - 8))
    tail = file.read(8)
    length = struct.unpack("<I", tail[:4])[0] if len(tail) == 8 and tail[4:] == b"PAR1" else 0
    file.seek(max(0, size - 8 - length))
    return file.read(min(length, _MOST_INDEX))


def _describes_itself(path: Path) -> bool:
    """Whether a GeoPackage's table of contents says that samforge wrote its layers."""
    address = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(address, uri=True)) as database:
            rows = database.execute("SELECT description FROM gpkg_contents").fetchall()
    except sqlite3.Error:
        return False  # another database, or a damaged one: somebody else's
    return bool(rows) and all(str(text).startswith(f"{SOFTWARE} ") for (text,) in rows)


def _index_of_video(file: BinaryIO) -> bytes:
    """The box ``moov`` of an MP4 or QuickTime file (ISO/IEC 14496-12), which holds its notes."""
    place = 0
    while True:
        file.seek(place)
        head = file.read(16)
        if len(head) < 8:
            return b""
        size, kind = struct.unpack(">I4s", head[:8])
        if size == 1 and len(head) == 16:
            (size,) = struct.unpack(">Q", head[8:])
        if kind == b"moov":
            file.seek(place)
            return file.read(min(size, _MOST_INDEX))
        if size < 8:
            return b""
        place += size
