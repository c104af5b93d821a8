"""A file of SQLite that one run has for itself, and that a kill or a full disk leaves whole.

SQLite, not lines of JSON: a line may be cut in two by a kill, and then what follows it has to be
guessed at; here a row is in the file or not at all. Write-ahead logging makes that true after
``kill -9`` and after a power cut, without waiting for the disk at each row. The file is locked as
long as it is open: a second run is refused, and network file systems need no shared memory
(https://www.sqlite.org/wal.html#noshm).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from samforge.core.closing import Closing
from samforge.core.errors import OutputError
from samforge.core.files import free_bytes, size_text

_ABOUT = (
    "CREATE TABLE IF NOT EXISTS about (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Schema:
    """What is in a store."""

    application: int
    """SQLite's number for kinds of files, 32 bits: a store of another kind is refused."""
    version: int
    """Of the tables, from 1: a store of another version is refused."""
    tables: str
    """Statements that make them where they are not there yet."""
    doing: str
    """What its owner does, for the second run: ``labelling into``."""


class Store(Closing):
    """Tables, and texts under keys."""

    def __init__(
        self, path: Path, schema: Schema, *, restart: bool = False, most_pages: int | None = None
    ) -> None:
        """Open a store, or begin one.

        Args:
            path: Its file.
            schema: What is in it.
            restart: Whether to forget what is there, at once or not at all.
            most_pages: How large the file may grow, in pages of 4 KiB; None as the disk allows.

        Raises:
            OutputError: Another run has it, it is of another version or kind, or it cannot be
                written.
        """
        self.path = path
        self._schema = schema
        with self._errors():
            self._base = sqlite3.connect(path, isolation_level=None, timeout=0.2)
            try:
                self._base.execute("PRAGMA locking_mode = EXCLUSIVE")
                self._require_own()  # the next line writes into the file
                self._base.execute("PRAGMA journal_mode = WAL")
                self._base.execute("PRAGMA synchronous = NORMAL")
                if most_pages is not None:
                    self._base.execute(f"PRAGMA max_page_count = {int(most_pages)}")
                with self._transaction():
                    self._begin(restart=restart)
            except BaseException:
                self._base.close()
                raise

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

    def _require_own(self) -> None:
        """Make sure that the file is new, or of this kind; it is read and no more."""
        (held,) = self._base.execute("SELECT count(*) FROM sqlite_master").fetchone()
        (kind,) = self._base.execute("PRAGMA application_id").fetchone()
        if kind != self._schema.application and (held or kind):
            raise OutputError(
                f"{self.path} is no ledger of this kind. It is left alone. Choose another output, "
                "or move it away."
            )

    def _begin(self, *, restart: bool) -> None:
        tables = [
            name
            for (name,) in self._base.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
            )
        ]
        (version,) = self._base.execute("PRAGMA user_version").fetchone()
        own = (self._schema.application, self._schema.version)
        if restart:
            for name in tables:
                self._base.execute(f'DROP TABLE "{name}"')
        elif tables and version != own[1]:
            raise OutputError(
                f"{self.path} was kept by another version of samforge: its tables are of version "
                f"{version}, and this one has {own[1]}. Go on with that version, choose another "
                "output, or give --restart to begin anew."
            )
        self._base.execute(f"PRAGMA application_id = {own[0]}")
        self._base.execute(f"PRAGMA user_version = {own[1]}")
        for statement in (_ABOUT + self._schema.tables).split(";"):
            self._base.execute(statement)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._base.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._base.execute("COMMIT")
        except BaseException:
            # A full disk has rolled back already.
            if self._base.in_transaction:
                self._base.execute("ROLLBACK")
            raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise OutputError(_explained(self.path, self._schema.doing, error)) from error


def _explained(path: Path, doing: str, error: sqlite3.Error) -> str:
    code = error.sqlite_errorcode & 0xFF if hasattr(error, "sqlite_errorcode") else 0
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return (
            f"Another run is {doing} {path.parent}. Wait for it, end it, or choose another output."
        )
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
        return (
            f"{path} cannot be written: {error}. Choose an output in a folder that exists and that "
            "you may write to."
        )
    if code == sqlite3.SQLITE_FULL:
        return (
            f"No space is left for {path}: {size_text(free_bytes(path))} are free. Free some space "
            "and run again: what was done is kept."
        )
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
        return (
            f"{path} is no ledger of samforge, or is damaged: {error}. Choose another output, or "
            "move it away and begin anew."
        )
    return (
        f"{path} cannot be read or written: {error}. What was done is kept: run again once that "
        "is mended."
    )
