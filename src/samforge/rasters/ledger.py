"""What windows found, kept on disk: a run that was stopped goes on from there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samforge.core.closing import Closing
from samforge.core.errors import SettingError
from samforge.core.files import output_errors
from samforge.core.words import json_text
from samforge.rasters.grid import Grid, Place
from samforge.rasters.pieces import Piece, piece_from_dict

SUFFIX = ".windows"
"""Of the ledger's name, behind that of the file that is written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowFound:
    """What a window found."""

    pieces: list[Piece]
    """Of objects."""
    best_scores: Mapping[str, float]
    """Best score of each phrase, admitted or not."""
    empty: bool
    """Whether it holds no data, and was not segmented."""


class Ledger(Closing):
    """A line for each window that is done. Use it as a context manager."""

    def __init__(self, path: Path, key: Mapping[str, Any], *, restart: bool) -> None:
        """Open a ledger, or begin one.

        Args:
            path: Where it is.
            key: What decides over what windows find: bundle, raster, settings.
            restart: Whether to forget what is there.

        Raises:
            SettingError: There is one of another run.
            OutputError: It cannot be written.
        """
        self.path = path
        self._places: dict[Place, int] = {}
        digest = hashlib.sha256(json_text(key, indent=None).encode()).hexdigest()
        head = json.dumps({"samforge raster": 1, "key": digest}) + "\n"
        with output_errors(path):
            if restart:
                path.unlink(missing_ok=True)
            self._file = path.open("a+b")
            try:
                self._begin(head.encode())
            except BaseException:
                self._file.close()
                raise

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, place: Place) -> bool:
        return place in self._places

    def read(self, place: Place, grid: Grid) -> WindowFound:
        """What a window found in an earlier run, or a moment ago."""
        with output_errors(self.path):
            self._file.seek(self._places[place])
            line = json.loads(self._file.readline())
        pieces = (piece_from_dict(one, grid, place) for one in line["pieces"])
        return WindowFound(
            pieces=[one for one in pieces if one is not None],
            best_scores=line["best"],
            empty=line["empty"],
        )

    def write(self, place: Place, found: WindowFound) -> None:
        """Keep what a window found: from here on a killed process does not lose it.

        Raises:
            OutputError: The disk is full.
        """
        line = {
            "window": list(place),
            "empty": found.empty,
            "best": dict(found.best_scores),
            "pieces": [piece.to_dict() for piece in found.pieces],
        }
        with output_errors(self.path):
            self._file.seek(0, 2)
            start = self._file.tell()
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()
        self._places[place] = start

    def remove(self) -> None:
        """Forget it: everything is done."""
        self._file.close()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close its file."""
        self._file.close()

    def _begin(self, head: bytes) -> None:
        self._file.seek(0)
        first = self._file.readline()
        if first and not first.endswith(b"\n") and head.startswith(first):
            first = b""  # killed while it began
        if not first:
            self._file.truncate(0)
            self._file.write(head)
            self._file.flush()
            return
        if first != head:
            raise SettingError(
                f"{self.path} holds what windows of another run found: the bundle, the raster or "
                "the settings were others. Give --restart to begin anew, or what that run was "
                "given to go on with it."
            )
        self._read_places()

    def _read_places(self) -> None:
        whole = self._file.tell()
        for line in self._file:
            start, whole = whole, whole + len(line)
            try:
                row, column = json.loads(line)["window"]
            except (ValueError, KeyError, TypeError):
                whole = start  # torn: the process was killed while it wrote
                break
            self._places[row, column] = start
        self._file.truncate(whole)
