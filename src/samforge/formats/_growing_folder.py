"""A folder of many files that appears under its name when it is whole."""

from __future__ import annotations

import shutil
from pathlib import Path, PurePosixPath

from samforge.core.errors import OutputError
from samforge.core.files import output_errors
from samforge.core.placing import part_beside, place_folder


class GrowingFolder:
    """A folder that is written beside its place, and takes an earlier one's when it is whole."""

    def __init__(self, path: Path) -> None:
        """Begin a folder.

        Raises:
            OutputError: It cannot be made.
        """
        self.path = path
        self.inside = part_beside(path)
        """Where to write meanwhile."""
        with output_errors(path):
            self.inside.mkdir()

    def place(self, name: str) -> Path:
        """Where a file of the folder goes, by its relative name; its own folder is made.

        Raises:
            OutputError: It cannot be made, or the name leads out of the folder.
        """
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts:
            raise OutputError(
                f"{name!r:.120} leads out of {self.path}. Give a relative name inside the folder."
            )
        place = self.inside / name
        with output_errors(self.path / name):
            place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def write(self, name: str, content: bytes) -> None:
        """Write a file of the folder.

        Raises:
            OutputError: The disk is full, or the name is one that no file can have.
        """
        place = self.place(name)
        with output_errors(self.path / name):
            place.write_bytes(content)

    def append(self, name: str, content: bytes) -> None:
        """Add to a file of the folder.

        Raises:
            OutputError: The disk is full.
        """
        with output_errors(self.path / name), self.place(name).open("ab") as file:
            file.write(content)

    def finish(self) -> Path:
        """Put the folder under its name: whoever looks sees the old one or this one.

        Raises:
            OutputError: It cannot be renamed, or the disk is full.
        """
        with output_errors(self.path):
            place_folder(self.inside, self.path)
        return self.path

    def discard(self) -> None:
        """Give up: nothing is left behind."""
        shutil.rmtree(self.inside, ignore_errors=True)
