"""Stores: what is somebody else's is read and no more."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from samforge.core.errors import OutputError
from samforge.core.store import Schema, Store

SCHEMA = Schema(
    application=0x53464C62,
    version=1,
    doing="writing into",
    tables="CREATE TABLE IF NOT EXISTS rows (number INTEGER);",
)


def foreign(path: Path, journal: str, *, statement: str) -> bytes:
    """A database of another program, at rest."""
    with closing(sqlite3.connect(path)) as base:
        base.execute(f"PRAGMA journal_mode = {journal}")
        base.execute(statement)
        base.commit()
    return path.read_bytes()


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("journal", ["delete", "wal"])
@pytest.mark.parametrize(
    "statement",
    ["CREATE TABLE photos (name TEXT)", "PRAGMA application_id = 1196444487"],
    ids=["a table", "a GeoPackage without any"],
)
def test_a_database_of_another_program_stays_as_it_is(
    tmp_path: Path, restart: bool, journal: str, statement: str
) -> None:
    path = tmp_path / "ledger.sqlite"
    before = foreign(path, journal, statement=statement)
    with pytest.raises(OutputError, match="no ledger of this kind"):
        Store(path, SCHEMA, restart=restart)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["ledger.sqlite"]


def test_a_file_that_is_no_database_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"notes of mine, " * 400)
    with pytest.raises(OutputError, match="is no ledger of samforge"):
        Store(path, SCHEMA, restart=True)
    assert path.read_bytes() == b"notes of mine, " * 400


def test_a_store_is_opened_again_and_emptied_on_demand(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.touch()  # as a full disk may leave it
    for restart, known in ((False, None), (False, "one"), (True, None)):
        with Store(path, SCHEMA, restart=restart) as store:
            assert store.noted("key") == known
            store.note("key", "one")
