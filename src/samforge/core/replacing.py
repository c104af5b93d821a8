"""A folder that is replaced while others read it: publishers leave no gap, readers no mixture."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

from samforge.core.closing import Closing
from samforge.core.errors import OutputError
from samforge.core.lock import BuildLock
from samforge.core.own_folder import LOCK_NAME, REPLACED, is_marked, manifest_table, work_folder

GAP_SECONDS = 5.0
"""Longest time that a reader waits for a publisher between two renames."""
_NAP_SECONDS = 0.005


class Pin(Closing):
    """Holds on to a folder, so that what is read is of this one even if another takes its place."""

    def __init__(self, root: Path) -> None:
        self.folder = root
        """Path to read by."""
        self._root = root
        self._handle: int | None = None
        self._missing = False

    def __enter__(self) -> Self:
        try:
            self._handle = os.open(self._root, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        except FileNotFoundError:
            self._missing = True
            return self
        except OSError:
            return self  # reading tells why; Windows opens no folders
        through = Path(f"/proc/self/fd/{self._handle}")
        if through.is_dir():
            self.folder = through
        return self

    def close(self) -> None:
        """Let go of the folder."""
        if self._handle is not None:
            os.close(self._handle)

    def is_current(self) -> bool:
        """Whether the folder is still the one at its path."""
        if self._missing:
            return not self._root.exists() and _aside(self._root) is None
        if self._handle is None:
            return True
        try:
            return os.path.samestat(self._root.stat(), os.fstat(self._handle))
        except OSError:
            return False


def settled(root: Path) -> None:
    """Where a replacement is between its two renames, wait for it, or undo it if it was killed."""
    end = time.monotonic() + GAP_SECONDS
    while not root.exists() and _aside(root) is not None and time.monotonic() < end:
        if not is_marked(work_folder(root)):  # from before the mark: nobody has a lock
            with suppress(OSError):
                put_back(root)
            return
        lock = BuildLock(work_folder(root) / LOCK_NAME)
        try:
            lock.acquire()
        except OutputError:
            time.sleep(_NAP_SECONDS)  # its owner lives: the second rename is a moment away
            continue
        try:
            put_back(root)
        except OSError:
            return  # a folder that may not be written: opening tells that nothing is there
        finally:
            lock.release()


def put_back(out: Path) -> None:
    """Undo a replacement that was killed between its two renames; only its lock's owner may.

    Raises:
        OSError: The folder cannot be renamed.
    """
    old = _aside(out)
    if old is not None and not out.exists() and not out.is_symlink():
        old.rename(out)


def _aside(out: Path) -> Path | None:
    """Where the old bundle is meanwhile, if it is."""
    work = work_folder(out)
    inside = (work / REPLACED,) if is_marked(work) else ()
    earlier = out.with_name(f".{out.name}.replaced")  # before builds had a mark
    return next((old for old in (*inside, earlier) if manifest_table(old) is not None), None)
