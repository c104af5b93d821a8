"""Files: hashes, whole-or-nothing writes, free space, and errors that name the path."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from samforge.core.errors import OutputError, SamforgeError
from samforge.core.paths import checked_path
from samforge.core.placing import part_beside, place_file
from samforge.core.words import json_text

PROBE = "probe"
"""Whose part is written to find out whether a folder can be written to."""
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_FULL = 1 << 20  # bytes free: what fails then fails for want of space
_NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def free_bytes(path: Path) -> int:
    """Bytes that can still be written where ``path`` is, or would be once its parents exist."""
    return shutil.disk_usage(_nearest_existing(path)).free


def require_space(path: Path, needed_bytes: int) -> None:
    """Refuse early what would fill the disk.

    Raises:
        OutputError: Fewer than ``needed_bytes`` are free where ``path`` would be.
    """
    free = free_bytes(path)
    if free < needed_bytes:
        raise OutputError(
            f"{path} needs {size_text(needed_bytes)}, and {size_text(free)} are free there. "
            "Free some space, or choose an output on another disk."
        )


def writable_folder(path: Path) -> Path:
    """Make a folder and prove that files can be written to it, before hours of work go there.

    Returns:
        The folder, absolute.

    Raises:
        OutputError: It cannot be made, is something else, or cannot be written.
    """
    path = checked_path(path, OutputError).absolute()
    probe = part_beside(path / PROBE)
    with output_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(b"samforge")
        finally:
            probe.unlink(missing_ok=True)
    return path


@contextmanager
def output_errors(path: Path, needed_bytes: int | None = None) -> Iterator[None]:
    """Turn an OSError of the body into an OutputError that names the path and what is needed.

    Args:
        path: What the body writes.
        needed_bytes: What it takes, if known: a full disk's message then says so.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(_explained(path, error, needed_bytes)) from error


@contextmanager
def system_errors(path: Path) -> Iterator[None]:
    """Turn what the system says to a long piece of work into an OutputError, wherever it comes up.

    Libraries wrap a full disk into errors of their own (torch's zip writer, ONNX Runtime); where
    the disk is full, that is what is said. Errors of ours pass unchanged.

    Args:
        path: What the body makes.
    """
    try:
        yield
    except SamforgeError:
        raise
    except Exception as error:
        cause = _system_error(error)
        if (cause is not None and cause.errno in _NO_SPACE) or free_bytes(path) < _FULL:
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise OutputError(_explained(path, full, None)) from error
        if not isinstance(error, OSError):
            raise
        where = error.filename or path
        raise OutputError(
            f"{where} cannot be read or written: {error.strerror or error}. Finished steps are "
            "kept: run it again once that is mended."
        ) from error


def _system_error(error: BaseException | None) -> OSError | None:
    """The error of the system behind an error, if there is one."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a killed process, sees the old content or the new.

    Raises:
        OutputError: The folder cannot be written or the disk is full; the old content stays.
    """
    with output_errors(path, len(content)):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = part_beside(path)
        try:
            with temporary.open("xb") as file:
                file.write(content)
            place_file(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def atomic_write_text(path: Path, content: str) -> None:
    """Write a UTF-8 text file whole or not at all; see ``atomic_write_bytes``."""
    # Half a character, of a file name that is not UTF-8, must not lose the rest.
    atomic_write_bytes(path, content.encode("utf-8", "backslashreplace"))


def atomic_write_json(path: Path, value: object) -> None:
    """Write plain values or dataclasses as indented JSON, whole or not at all."""
    atomic_write_text(path, json_text(value) + "\n")


def size_text(count: int) -> str:
    """Bytes for people: ``640 bytes``, ``3.5 MiB``."""
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >= 1 << power:
            return f"{count / (1 << power):.1f} {unit}"
    return f"{count} bytes"


def _explained(path: Path, error: OSError, needed_bytes: int | None) -> str:
    if error.errno in _NO_SPACE:
        need = "" if needed_bytes is None else f"It needs {size_text(needed_bytes)}. "
        return (
            f"No space is left to write {path}: {size_text(free_bytes(path))} are free. {need}"
            "Free some space and run again: finished steps are kept."
        )
    if error.errno in _NO_PERMISSION:
        return (
            f"{path} cannot be written: {error.strerror}. "
            "Choose an output folder you may write to, or change its permissions."
        )
    return f"{path} cannot be written: {error.strerror or error}. Choose another output folder."


def _nearest_existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())
