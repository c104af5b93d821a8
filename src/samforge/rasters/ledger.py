"""What windows found, kept on disk: a run that was stopped goes on from there.

A window is in the ledger with all its pieces or not at all (core/store.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samforge.core.errors import SettingError
from samforge.core.files import output_errors
from samforge.core.placing import remove_place
from samforge.core.store import Schema, Store
from samforge.core.words import json_text
from samforge.rasters.grid import Grid, Place
from samforge.rasters.pieces import Piece, piece_from_dict

SUFFIX = ".windows"
"""Of the ledger's name, behind that of the file that is written."""
_SCHEMA = Schema(
    application=0x53467261,
    version=1,
    doing="writing into",
    tables="""
CREATE TABLE IF NOT EXISTS windows (
    grid_row INTEGER NOT NULL, grid_column INTEGER NOT NULL, body TEXT NOT NULL,
    PRIMARY KEY (grid_row, grid_column)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS parts (place TEXT PRIMARY KEY) WITHOUT ROWID;
""",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowFound:
    """What a window found."""

    pieces: list[Piece]
    """Of objects."""
    best_scores: Mapping[str, float]
    """Best score of each phrase, admitted or not."""
    empty: bool
    """Whether it holds no data, and was not segmented."""


class Ledger(Store):
    """A row for each window that is done. Use it as a context manager."""

    def __init__(self, path: Path, key: Mapping[str, Any], *, restart: bool) -> None:
        """Open a ledger, or begin one, and remove what a killed run had begun to write.

        Args:
            path: Where it is.
            key: What decides over what windows find: version, bundle, raster, settings.
            restart: Whether to forget what is there.

        Raises:
            SettingError: There is one of another run.
            OutputError: Another run is at work on it, it is of another version, or it cannot be
                written.
        """
        super().__init__(path, _SCHEMA, restart=restart)
        try:
            self._identify(hashlib.sha256(json_text(key, indent=None).encode()).hexdigest())
            self._sweep()
            with self._errors():
                rows = self._base.execute("SELECT grid_row, grid_column FROM windows")
                self._places: set[Place] = set(rows.fetchall())
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, place: Place) -> bool:
        return place in self._places

    def read(self, place: Place, grid: Grid) -> WindowFound:
        """What a window found in an earlier run, or a moment ago."""
        with self._errors():
            (body,) = self._base.execute(
                "SELECT body FROM windows WHERE grid_row = ? AND grid_column = ?", place
            ).fetchone()
        table = json.loads(body)
        pieces = (piece_from_dict(one, grid, place) for one in table["pieces"])
        return WindowFound(
            pieces=[one for one in pieces if one is not None],
            best_scores=table["best"],
            empty=table["empty"],
        )

    def write(self, place: Place, found: WindowFound) -> None:
        """Keep what a window found: from here on a killed process does not lose it.

        Raises:
            OutputError: The disk is full; what was in it stays.
        """
        table = {
            "empty": found.empty,
            "best": dict(found.best_scores),
            "pieces": [piece.to_dict() for piece in found.pieces],
        }
        with self._errors():
            self._base.execute(
                "INSERT OR REPLACE INTO windows VALUES (?, ?, ?)", (*place, json.dumps(table))
            )
        self._places.add(place)

    def remember_part(self, part: Path) -> None:
        """Note a file that is being written: the next run removes it where this one is killed."""
        with self._errors():
            self._base.execute("INSERT OR REPLACE INTO parts VALUES (?)", (_text_of(part),))

    def remove(self) -> None:
        """Forget it: everything is done.

        Raises:
            OutputError: It cannot be removed.
        """
        self.close()
        with output_errors(self.path):
            self.path.unlink(missing_ok=True)

    def _begin(self, *, restart: bool) -> None:
        begun: list[tuple[str]] = []
        if (
            restart
            and self._base.execute("SELECT 1 FROM sqlite_master WHERE name = 'parts'").fetchone()
        ):
            begun = self._base.execute("SELECT place FROM parts").fetchall()
        super()._begin(restart=restart)
        self._base.executemany("INSERT INTO parts VALUES (?)", begun)

    def _identify(self, digest: str) -> None:
        known = self.noted("key")
        if known is None:
            self.note("key", digest)
        elif known != digest:
            raise SettingError(
                f"{self.path} holds what windows of another run found: the bundle, the raster, the "
                "settings or the version of samforge were others. Give --restart to begin anew, or "
                "what that run was given to go on with it."
            )

    def _sweep(self) -> None:
        with self._errors():
            begun = [Path(_path_of(text)) for (text,) in self._base.execute("SELECT * FROM parts")]
        for part in begun:
            with output_errors(part):
                remove_place(part)
        with self._errors():
            self._base.execute("DELETE FROM parts")


def _text_of(path: Path) -> str:
    """A path as text for SQLite, whatever bytes its name has."""
    return json.dumps(str(path))


def _path_of(text: str) -> str:
    return str(json.loads(text))
