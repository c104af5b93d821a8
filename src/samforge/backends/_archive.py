"""Notes that a ``.pt2`` archive carries, read without torch and without loading its code."""

from __future__ import annotations

import zipfile
from pathlib import Path

LARGEST_NOTE = 2**20
"""Longest note that is read, in bytes."""


def note_from_archive(path: Path, name: str) -> str | None:
    """Read the one file of an archive whose name ends so.

    Args:
        path: The archive.
        name: The last characters of the file's name: ``/extra/notes``.

    Returns:
        Nothing for a file that is no archive, or has no such note or two of them: the runtime says
        what is wrong with the former with a better message.
    """
    notes = notes_from_archive(path, name)
    return notes[0] if len(notes) == 1 else None


def notes_from_archive(path: Path, name: str) -> tuple[str, ...]:
    """Read every file of an archive whose name ends so, but for those too long for a note.

    Args:
        path: The archive.
        name: The last characters of the file's name: ``/extra/notes``.

    Returns:
        Nothing for a file that is no archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = [one for one in archive.infolist() if one.filename.endswith(name)]
            return tuple(
                archive.read(one).decode() for one in found if one.file_size <= LARGEST_NOTE
            )
    except (OSError, ValueError, NotImplementedError, RuntimeError, zipfile.BadZipFile):
        return ()
