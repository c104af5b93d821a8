"""Paths that users and files name, checked before the system's own errors come up."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from samforge.core.errors import PathError, SamforgeError

_UNUSABLE = {
    errno.ENAMETOOLONG: "it is too long. Give a shorter one",
    errno.ELOOP: "its links lead in a circle. Give the folder or file that they should lead to",
}


def checked_path(path: str | os.PathLike[str], error_of: type[SamforgeError] = PathError) -> Path:
    """Make sure that the system can look at a path, whether something is there or not.

    Too long names, links in a circle and null characters make every question about a path raise,
    ``Path.exists`` among them.

    Args:
        path: From a user or a file.
        error_of: The error to raise.
    """
    try:
        os.stat(path)  # noqa: PTH116  a Path would be made of what may be none
    except OSError as error:
        if error.errno in _UNUSABLE:
            raise error_of(
                f"{os.fspath(path)!r:.120} is no usable path: {_UNUSABLE[error.errno]}."
            ) from error
    except ValueError as error:  # a null character, or half of a Unicode character
        raise error_of(f"{os.fspath(path)!r:.120} is no usable path: {error}.") from error
    return Path(path)


def is_file(path: Path) -> bool:
    """Whether a file is there; False too where the system cannot even look."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Whether a folder is there; False too where the system cannot even look."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False
