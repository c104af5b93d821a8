"""A file that grows while a video is read, and appears under its name when it is finished."""

from __future__ import annotations

from pathlib import Path

from samforge.core.files import output_errors
from samforge.core.placing import part_beside, place_file


class GrowingFile:
    """Text that is written bit by bit, beside its place until it is whole."""

    def __init__(self, path: Path) -> None:
        """Begin a file.

        Args:
            path: Where to; its folder exists.

        Raises:
            OutputError: It cannot be written.
        """
        self.path = path
        self.part = part_beside(path)
        """Where it is meanwhile."""
        with output_errors(path):
            self._file = self.part.open("x", encoding="utf-8")

    def write(self, text: str) -> None:
        """Append text.

        Raises:
            OutputError: The disk is full.
        """
        with output_errors(self.path):
            try:
                self._file.write(text)
            except OSError:
                self.discard()
                raise

    def finish(self) -> Path:
        """Put the file under its name.

        Raises:
            OutputError: The disk is full.
        """
        with output_errors(self.path):
            self._file.close()
            place_file(self.part, self.path)
        return self.path

    def discard(self) -> None:
        """Give up: nothing is left behind."""
        self.part.unlink(missing_ok=True)
        try:
            self._file.close()
        except OSError:
            return  # what could not be written belonged to a file that is gone
