"""Files and folders that are written beside their place, and take it when they are whole.

What takes a place is on the disk before it does, so that a power cut leaves the old or the new.
"""

from __future__ import annotations

import ctypes
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from samforge.core.exchange import exchange

_LONGEST = 200
"""Bytes of a name that its part repeats: 255 is the most that file systems take."""
_RANDOM_BYTES = 4


def part_beside(path: Path, *, suffix: str = "") -> Path:
    """A new hidden name in the same folder: ``.coco.json.9f86d081.part``.

    Args:
        path: What is going to be there.
        suffix: Behind it, for writers that look at endings.
    """
    number = secrets.token_hex(_RANDOM_BYTES)
    return path.absolute().with_name(f"{_before_number(path)}{number}.part{suffix}")


def parts_left(path: Path) -> list[Path]:
    """Parts of a place that killed processes have left beside it, and no other file.

    Args:
        path: A place of which nobody writes a part now.

    Raises:
        OSError: The folder cannot be read.
    """
    form = re.compile(
        rf"{re.escape(_before_number(path))}[0-9a-f]{{{2 * _RANDOM_BYTES}}}\.part", re.DOTALL
    )
    return [one for one in path.absolute().parent.iterdir() if form.fullmatch(one.name)]


def _before_number(path: Path) -> str:
    return f".{os.fsencode(path.name)[:_LONGEST].decode('utf-8', 'ignore')}."


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
    sync_file(part)
    part.replace(path)
    sync_folder(path.absolute().parent)


def place_folder(
    part: Path,
    path: Path,
    *,
    aside: Path | None = None,
    check: Callable[[Path], None] = lambda _: None,
    remove: Callable[[Path], object] = remove_place,
) -> None:
    """Put a finished folder in its place, in one step where the system can; then remove the old.

    Where it cannot, the place is empty for the moment between two renames.

    Args:
        part: It.
        path: Where it goes.
        aside: Where the old is during that moment; None for a hidden name beside the place.
        check: Is shown the old once nobody can write to it by its name any more, and raises to
            have it back.
        remove: Removes the old, where it is then.

    Raises:
        OSError: It cannot be written to the disk, or renamed; what was there is there.
    """
    _sync_tree(part)
    old = None
    if not path.is_symlink() and not path.exists():
        part.rename(path)
    elif exchange(part, path):
        old = part
        try:
            check(old)
        except BaseException:
            exchange(part, path)
            raise
    else:
        old = aside or part_beside(path)
        path.rename(old)
        try:
            check(old)
            part.rename(path)
        except BaseException:
            old.rename(path)
            raise
    sync_folder(path.absolute().parent)
    if old is not None:
        with suppress(OSError):  # the new one is in its place: what is left of the old is clutter
            remove(old)


def sync_file(path: Path, *, system: str = os.name) -> None:
    """Write a file's content to the disk.

    Args:
        path: It.
        system: Kind of the system, as :data:`os.name` has it.

    Raises:
        OSError: It cannot be written.
    """
    # Windows flushes only what was opened to be written.
    with _opened(path, os.O_RDWR if system == "nt" else os.O_RDONLY) as handle:
        os.fsync(handle)


def sync_folder(folder: Path, *, system: str = os.name) -> None:
    """Make the names in a folder last: a rename does only once its folder is on the disk."""
    if system == "nt":  # Windows cannot open folders
        return
    with _opened(folder, os.O_RDONLY) as handle:
        os.fsync(handle)


def _sync_tree(folder: Path) -> None:
    """Write a folder of any number of files to the disk.

    By syncfs(2) in one call, which waits once and not once a file; elsewhere file by file.
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None) if os.name != "nt" else None
    if call is not None:
        with _opened(folder, os.O_RDONLY) as handle:
            if call(handle) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), str(folder))
        return
    for place, _, files in os.walk(folder):
        for name in files:
            if not (Path(place) / name).is_symlink():
                sync_file(Path(place) / name)
        sync_folder(Path(place))


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    handle = os.open(path, flags)
    try:
        yield handle
    finally:
        os.close(handle)
