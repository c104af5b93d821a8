"""Keeps two processes from building the same output at the same time."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from samforge.core.errors import OutputError
from samforge.core.files import output_errors

_NO_LINKS = getattr(os, "O_NOFOLLOW", 0)
_NO_WAITING = getattr(os, "O_NONBLOCK", 0)
_LONGEST_OWNER = 20
_OWNER = re.compile(rb"[0-9]{0,20}")


class BuildLock:
    """An exclusive lock on a file that holds the owner's process id.

    The kernel holds the lock, not the file's existence: it is free again as soon as its owner is
    dead, ``kill -9`` included, whatever process has that id by then.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            OutputError: Another living process has it, the file cannot be written, or it is no
                lock of samforge: a link, or a file with something else in it.
        """
        while self._handle is None:
            with output_errors(self.path):
                flags = os.O_RDWR | os.O_CREAT | _NO_LINKS | _NO_WAITING
                handle = os.open(self.path, flags, 0o666)
            try:
                _check_own(self.path, handle)
                self._lock(handle)
                # The last owner may have deleted the file between our open and our lock: then
                # others lock a new file of that name, and this one guards nothing.
                if _is_file_of(self.path, handle):
                    self._handle = handle
            finally:
                if self._handle is None:
                    os.close(handle)
        with output_errors(self.path):
            os.ftruncate(self._handle, 0)
            os.write(self._handle, str(os.getpid()).encode())

    def release(self) -> None:
        """Give the lock back; nothing happens if it is not held."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _lock(self, handle: int) -> None:
        import fcntl  # builds run on Linux and macOS; opening bundles does not come here

        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(handle, 32, 0).decode(errors="replace") or "unknown"
            raise OutputError(
                f"Another build (process {owner}) is writing {self.path.parent}. "
                "Wait for it, end it, or choose another output folder."
            ) from error


def _check_own(path: Path, handle: int) -> None:
    """A lock is emptied and written: make sure that nothing of anybody else's is."""
    found = os.fstat(handle)
    own = stat.S_ISREG(found.st_mode) and found.st_nlink <= 1
    if not own or not _OWNER.fullmatch(os.pread(handle, _LONGEST_OWNER + 1, 0)):
        raise OutputError(
            f"{path} is no lock of samforge: it is a link, or holds something else. It is left "
            "alone. Move it away, or choose another output folder."
        )


def _is_file_of(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False
