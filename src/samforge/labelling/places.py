"""Files on this machine and, through fsspec, anywhere else."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO, cast

from samforge.core.errors import MissingExtra
from samforge.core.file_state import read_whole
from samforge.core.native import native_errors
from samforge.core.paths import checked_path
from samforge.labelling.items import SourceError, is_url

MOST_BYTES = 1 << 31
"""Of one picture's file: no picture that is read is larger."""


def read_file(place: str) -> bytes:
    """The whole content of a file that does not change meanwhile.

    Raises:
        SourceError: It cannot be read, or it changes while it is read.
    """
    if is_url(place):
        with opened(place) as file, native_errors(lambda error: _unreadable(place, error)):
            content = file.read(MOST_BYTES + 1)
        require_size(place, len(content))
        return content
    try:
        return read_whole(Path(place), at_most=MOST_BYTES)[0]
    except (OSError, ValueError) as error:
        raise _unreadable(place, error) from error


def require_size(place: str, size: int) -> None:
    """Refuse what no picture is as large as, before it is read where its size is told.

    Raises:
        SourceError: It is.
    """
    if size > MOST_BYTES:
        raise SourceError(
            f"{place} is larger than the {MOST_BYTES} bytes that a picture's file may have."
        )


def opened(place: str) -> AbstractContextManager[BinaryIO]:
    """Open a file to read.

    Raises:
        SourceError: It cannot be opened.
        MissingExtra: It is a URL, and fsspec is not installed.
    """
    with native_errors(lambda error: _unreadable(place, error)):
        if is_url(place):
            system, path = file_system(place)
            return cast("AbstractContextManager[BinaryIO]", system.open(path, "rb"))
        return Path(place).open("rb")


def exists(place: str) -> bool:
    """Whether something is there."""
    if not is_url(place):
        return checked_path(place, SourceError).exists()
    with native_errors(lambda error: _unreadable(place, error)):
        system, path = file_system(place)
        return bool(system.exists(path))


def stamp_of(place: str) -> str:
    """Size and time of a file, or what else its store tells of it."""
    if not is_url(place):
        try:
            found = Path(place).stat()
        except (OSError, ValueError):  # a name that no file can have
            return "absent"
        return f"{found.st_size}-{found.st_mtime_ns}"
    with native_errors(lambda error: _unreadable(place, error)):
        system, path = file_system(place)
        return stamp_of_entry(system.info(path))


def stamp_of_entry(entry: dict[str, Any]) -> str:
    """The same from what a store says of a file."""
    keys = ("size", "ETag", "etag", "mtime", "LastModified", "last_modified", "created")
    return "-".join(str(entry[key]) for key in keys if entry.get(key) is not None)


def file_system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path on it.

    Raises:
        MissingExtra: fsspec is not installed.
    """
    try:
        import fsspec
    except ModuleNotFoundError as error:
        raise MissingExtra("fsspec, which opens URLs,", "label") from error
    system, path = fsspec.core.url_to_fs(url)
    return system, str(path)


def _unreadable(place: str, error: BaseException) -> SourceError:
    if isinstance(error, FileNotFoundError):
        return SourceError(f"{place} does not exist. Was it moved or removed meanwhile?")
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return SourceError(f"{place} cannot be read: {reason}.")
