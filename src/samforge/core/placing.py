"""Files and folders that are written beside their place, and take it when they are whole.

What takes a place is on the disk before it does, so that a power cut leaves the old or the new.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from samforge.core.exchange import exchange

_LONGEST = 200
"""Bytes of a name that its part repeats: 255 is the most that file systems take."""


def part_beside(path: Path, *, suffix: str = "") -> Path:
    """A new hidden name in the same folder: ``.coco.json.9f86d081.part``.

    Args:
        path: What is going to be there.
        suffix: Behind it, for writers that look at endings.
    """
    name = os.fsencode(path.name)[:_LONGEST].decode("utf-8", "ignore")
    return path.absolute().with_name(f".{name}.{secrets.token_hex(4)}.part{suffix}")


def remove_place(path: Path) -> None:
    """Remove a file, a link or a folder, if one is there.

    Raises:
        OSError: It cannot be removed.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def place_file(part: Path, path: Path) -> None:
    """Put a finished file in its place.

    Raises:
        OSError: It cannot be written to the disk, or renamed.
    """
    with _opened(part) as handle:
        os.fsync(handle)
    part.replace(path)
    sync_folder(path.absolute().parent)


def place_folder(part: Path, path: Path) -> None:
    """Put a finished folder in its place, in one step where the system can; then remove the old.

    Where it cannot, the place is empty for the moment between two renames.

    Raises:
        OSError: It cannot be written to the disk, or renamed; what was there is there.
    """
    _sync_tree(part)
    if not path.is_symlink() and not path.exists():
        part.rename(path)
    elif not exchange(part, path):
        earlier = part_beside(path)
        path.rename(earlier)
        try:
            part.rename(path)
        except BaseException:
            earlier.rename(path)
            raise
        part = earlier
    sync_folder(path.absolute().parent)
    with suppress(OSError):  # the new one is in its place: what is left of the old is clutter
        remove_place(part)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last: a rename does only once its folder is on the disk."""
    if os.name == "nt":  # Windows cannot open folders
        return
    with _opened(folder) as handle:
        os.fsync(handle)


def _sync_tree(folder: Path) -> None:
    """Write a folder of any number of files to the disk.

    By syncfs(2) in one call, which waits once and not once a file; elsewhere file by file.
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None) if os.name != "nt" else None
    if call is not None:
        with _opened(folder) as handle:
            if call(handle) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), str(folder))
        return
    for place, _, files in os.walk(folder):
        for name in files:
            if not (Path(place) / name).is_symlink():
                with _opened(Path(place) / name) as handle:
                    os.fsync(handle)
        sync_folder(Path(place))


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    handle = os.open(path, os.O_RDONLY)
    try:
        yield handle
    finally:
        os.close(handle)
