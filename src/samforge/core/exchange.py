"""Two folders change places at once, where the system can: nobody sees a moment without either.

Sources: renameat2(2), RENAME_EXCHANGE; Linux 3.15, and ext4, XFS, Btrfs, tmpfs among others.
renamex_np(2), RENAME_SWAP; macOS 10.12, and APFS. It is written from the manual and was tested with
a stand-in of the C library: nobody here has a Mac.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeAlias

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_RENAME_SWAP = 2
_CANNOT = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)
"""What kernels and file systems answer that do not have it."""

_Call: TypeAlias = Callable[[bytes, bytes], int]
"""Exchanges two paths; 0 when it did, else errno tells."""


def exchange(one: Path, other: Path) -> bool:
    """Let two paths change places in one step.

    Returns:
        Whether it was done; False where the system or the file system has no such call.

    Raises:
        OSError: It has, and refuses.
    """
    call = _exchanging_call()
    if call is None:
        return False
    if call(os.fsencode(one), os.fsencode(other)) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT:
        return False
    raise OSError(number, os.strerror(number), str(other))


@lru_cache(maxsize=1)
def _exchanging_call() -> _Call | None:
    try:
        library = ctypes.CDLL(None, use_errno=True)
    except (OSError, TypeError):  # Windows wants a name
        return None
    return _call_of(library, sys.platform)


def _call_of(library: Any, platform: str) -> _Call | None:
    """The call of a C library; None where it has none: glibc before 2.28, another system."""
    if platform.startswith("linux"):
        call = getattr(library, "renameat2", None)
        if call is None:
            return None
        kinds = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
        call.argtypes, call.restype = kinds, ctypes.c_int
        return partial(_renamed_at, call)
    if platform == "darwin":
        call = getattr(library, "renamex_np", None)
        if call is None:
            return None
        call.argtypes, call.restype = (
            (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint),
            ctypes.c_int,
        )
        return partial(_renamed, call)
    return None


def _renamed_at(call: Any, one: bytes, other: bytes) -> int:
    done: int = call(_AT_FDCWD, one, _AT_FDCWD, other, _RENAME_EXCHANGE)
    return done


def _renamed(call: Any, one: bytes, other: bytes) -> int:
    done: int = call(one, other, _RENAME_SWAP)
    return done
