"""What tells that a file changed, without reading it again.

A file that is hashed and then loaded could be another one by then. Hashing twice would double the
time to load gigabytes; the kernel's own notes of a file change with every write, and cost nothing.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

TICK_NS = 20_000_000
"""Time stamps of file systems are as coarse as the kernel's clock tick, 10 ms at most. A file that
changed less than this ago could change again without a new time stamp."""
_MOST_TRIES = 5
_BINARY = getattr(os, "O_BINARY", 0)
_NO_WAITING = getattr(os, "O_NONBLOCK", 0)  # a named pipe is refused, not waited for


class FileState(NamedTuple):
    """What the file system says of a file; any write or replacement changes it."""

    device: int
    """File system."""
    inode: int
    """The file itself, whatever its name."""
    bytes: int
    """Size."""
    modified_ns: int
    """Last change of the content, which programs can set back."""
    changed_ns: int
    """Last change of content or notes, which they cannot."""


def state_of(path: Path) -> FileState:
    """State of the file that a path leads to.

    Raises:
        OSError: There is none.
    """
    return _state(path.stat())


def hashed(path: Path) -> tuple[str, FileState]:
    """SHA-256 of a file and the state that it had throughout.

    Raises:
        OSError: It cannot be read, is no ordinary file, or changes while it is read.
    """
    with _opened(path) as file:
        for _ in range(_MOST_TRIES):
            before = _settled(file)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            # Another name of the file that is removed, as of a build's work folder, changes its
            # notes and not its content.
            if _state(os.fstat(file.fileno())) == before:
                return digest, before
    raise OSError(errno.EBUSY, "it changes while it is read", str(path))


def read_whole(path: Path, *, at_most: int) -> tuple[bytes, FileState]:
    """Content of a small file and the state that it had throughout.

    Raises:
        OSError: It cannot be read, is no ordinary file, is larger, or changes while it is read.
    """
    with _opened(path) as file:
        for _ in range(_MOST_TRIES):
            before = _settled(file)
            if before.bytes > at_most:
                reason = f"it has {before.bytes} bytes, and at most {at_most} are read"
                raise OSError(errno.EFBIG, reason, str(path))
            file.seek(0)
            content = file.read(at_most + 1)
            if _state(os.fstat(file.fileno())) == before:
                return content, before
    raise OSError(errno.EBUSY, "it changes while it is read", str(path))


def _opened(path: Path) -> BufferedReader:
    file = os.fdopen(os.open(path, os.O_RDONLY | _BINARY | _NO_WAITING), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no ordinary file", str(path))
    return file


def _settled(file: BufferedReader) -> FileState:
    """State of a file whose next change will have another time stamp."""
    state = _state(os.fstat(file.fileno()))
    age = time.time_ns() - max(state.modified_ns, state.changed_ns)
    if 0 <= age < TICK_NS:
        time.sleep((TICK_NS - age) / 1e9)
        state = _state(os.fstat(file.fileno()))
    return state


def _state(found: os.stat_result) -> FileState:
    return FileState(
        found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
    )
