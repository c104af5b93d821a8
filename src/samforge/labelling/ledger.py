"""What has been labelled already, so that a run that is killed goes on where it was.

SQLite, not lines of JSON: a line may be cut in two by a kill, and then what follows it has to be
guessed at; here a picture is in the ledger with all its labels or not at all. Write-ahead logging
makes that true after ``kill -9`` and after a power cut, without waiting for the disk at each
picture. One process writes, and holds the file for itself: a second run is refused, and network
file systems need no shared memory (https://www.sqlite.org/wal.html#noshm).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from samforge.core.closing import Closing
from samforge.core.errors import InputError, OutputError
from samforge.core.files import free_bytes, size_text
from samforge.core.structure import value_from_json
from samforge.formats import LabelledPicture
from samforge.labelling.items import Item
from samforge.labelling.ontology import Ontology
from samforge.labelling.outcome import ItemFailure, Outcome, picture_from_body

NAME = "ledger.sqlite"
"""Its file in the output folder."""
SCHEMA = 1
"""Version of its tables."""
_TABLES = """
CREATE TABLE IF NOT EXISTS about (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS items (
    name TEXT PRIMARY KEY, stamp TEXT NOT NULL, frames INTEGER NOT NULL,
    kind TEXT, message TEXT, exit_code INTEGER
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS labels (
    name TEXT NOT NULL, frame INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (name, frame)
);
"""


class OtherRun(InputError):
    """The output folder holds labels of another model, ontology, version or source."""


class Ledger(Closing):
    """Which items are done, with their labels, and which failed and why."""

    def __init__(self, path: Path, *, most_pages: int | None = None) -> None:
        """Open a ledger, or begin one.

        Args:
            path: Its file.
            most_pages: How large the file may grow, in pages of 4 KiB; None as the disk allows.

        Raises:
            OutputError: Another run has it, or it cannot be written.
        """
        self.path = path
        with self._errors():
            self._base = sqlite3.connect(path, isolation_level=None, timeout=0.2)
            try:
                self._base.execute("PRAGMA locking_mode = EXCLUSIVE")
                self._base.execute("PRAGMA journal_mode = WAL")
                self._base.execute("PRAGMA synchronous = NORMAL")
                if most_pages is not None:
                    self._base.execute(f"PRAGMA max_page_count = {int(most_pages)}")
                self._base.executescript(f"BEGIN IMMEDIATE;{_TABLES}COMMIT;")
            except BaseException:
                self._base.close()
                raise

    def identify(self, identity: Mapping[str, Any]) -> None:
        """Make sure that what is in it was labelled in the same way, or begin with this one.

        Raises:
            OtherRun: It was labelled in another way: see :class:`OtherRun`.
        """
        known = self.identity()
        if known is None:
            text = json.dumps(dict(identity), sort_keys=True)
            with self._errors():
                self._base.execute("INSERT INTO about VALUES ('identity', ?)", (text,))
        elif known != json.loads(json.dumps(dict(identity))):
            raise OtherRun(_told(self.path.parent, known, identity))

    def identity(self) -> dict[str, Any] | None:
        """What it was labelled with; None at first."""
        with self._errors():
            row = self._base.execute("SELECT value FROM about WHERE key = 'identity'").fetchone()
        return None if row is None else json.loads(row[0])

    def clear(self) -> None:
        """Forget everything, at once or not at all.

        Raises:
            OutputError: The disk is full; what was in it stays.
        """
        with self._errors(), self._transaction():
            self._base.execute("DELETE FROM about")
            self._base.execute("DELETE FROM items")
            self._base.execute("DELETE FROM labels")

    def done(self, items: Sequence[Item]) -> set[int]:
        """Which of the items have labels, of the same file as it is now."""
        with self._errors():
            rows = self._base.execute("SELECT name, stamp FROM items WHERE kind IS NULL")
            known = dict(rows.fetchall())
        return {i for i, item in enumerate(items) if known.get(item.name) == item.stamp}

    def add(self, outcomes: Sequence[Outcome], items: Sequence[Item]) -> None:
        """Take outcomes down, all of them or none.

        Raises:
            OutputError: The disk is full; what was in it stays.
        """
        with self._errors(), self._transaction():
            for one in outcomes:
                self._take(one, items[one.number])

    def _take(self, one: Outcome, item: Item) -> None:
        if one.first == 0:
            self._base.execute("DELETE FROM labels WHERE name = ?", (item.name,))
            self._base.execute("DELETE FROM items WHERE name = ?", (item.name,))
        self._base.executemany(
            "INSERT INTO labels VALUES (?, ?, ?)",
            [(item.name, one.first + i, body) for i, body in enumerate(one.bodies)],
        )
        if one.ended:
            why = one.failure
            told = (None,) * 3 if why is None else (why.kind, why.message, why.exit_code)
            frames = one.first + len(one.bodies)
            self._base.execute(
                "INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?, ?, ?)",
                (item.name, item.stamp, frames, *told),
            )

    def failures(self, items: Sequence[Item]) -> list[ItemFailure]:
        """Items without labels and why, in order."""
        with self._errors():
            rows = self._base.execute(
                "SELECT name, kind, message, exit_code FROM items WHERE kind IS NOT NULL"
            ).fetchall()
        told = {
            name: ItemFailure(name=name, kind=kind, message=message, exit_code=exit_code)
            for name, kind, message, exit_code in rows
        }
        return [told[item.name] for item in items if item.name in told]

    def frames(self, name: str) -> int:
        """Pictures that an item has labels of: frames of a video, those before it broke off too."""
        with self._errors():
            row = self._base.execute("SELECT frames FROM items WHERE name = ?", (name,)).fetchone()
        return 0 if row is None else int(row[0])

    def bodies(self, name: str) -> Iterator[bytes]:
        """Labels of an item, frame by frame."""
        with self._errors():
            rows = self._base.execute(
                "SELECT body FROM labels WHERE name = ? ORDER BY frame", (name,)
            )
            for (body,) in rows:
                yield body

    def picture(self, name: str) -> LabelledPicture | None:
        """Labels of one picture or frame by its name; None where there are none."""
        video, _, frame = name.rpartition("/")
        known = [(name, 0)]
        if frame.removesuffix(".png").isdecimal():
            known.append((video, int(frame.removesuffix(".png"))))
        for item, number in known:
            with self._errors():
                row = self._base.execute(
                    "SELECT body FROM labels WHERE name = ? AND frame = ?", (item, number)
                ).fetchone()
            if row is not None:
                return picture_from_body(row[0])
        return None

    def note(self, key: str, value: str) -> None:
        """Remember a text under a key."""
        with self._errors():
            self._base.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (key, value))

    def noted(self, key: str) -> str | None:
        """The text under a key."""
        with self._errors():
            row = self._base.execute("SELECT value FROM about WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def close(self) -> None:
        """Put everything into the one file and give it free."""
        with self._errors():
            self._base.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._base.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            # A full disk has rolled back already.
            if self._base.in_transaction:
                self._base.execute("ROLLBACK")
            raise
        self._base.execute("COMMIT")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise OutputError(_explained(self.path, error)) from error


def _explained(path: Path, error: sqlite3.Error) -> str:
    code = error.sqlite_errorcode & 0xFF if hasattr(error, "sqlite_errorcode") else 0
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return (
            f"Another run is labelling into {path.parent}. Wait for it, end it, or choose another "
            "output folder."
        )
    if code == sqlite3.SQLITE_FULL:
        return (
            f"No space is left for {path}: {size_text(free_bytes(path))} are free. Free some space "
            "and run again: what was labelled is kept."
        )
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return (
            f"{path} is no ledger of samforge, or is damaged: {error}. Choose another output "
            "folder, or move it away and label again."
        )
    return (
        f"{path} cannot be read or written: {error}. What was labelled is kept: run again once "
        "that is mended."
    )


def _told(folder: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs, and what to do."""
    differ = []
    for key in dict.fromkeys([*now, *then]):
        if then.get(key) == now.get(key):
            continue
        if key == "ontology":
            mine = value_from_json(Ontology, now[key])
            differ.append(f"ontology ({mine.difference(then.get(key) or {})})")
        else:
            differ.append(f"{key} ({_short(then.get(key))} then, {_short(now.get(key))} now)")
    return (
        f"{folder} holds labels that were made in another way: {'; '.join(differ)}. They are not "
        "mixed. Choose another --out, or give --restart to label everything anew."
    )


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 80 else f"{text[:16]}…{text[-56:]}"
