"""What has been labelled already, so that a run that is killed goes on where it was.

A picture is in the ledger with all its labels or not at all (core/store.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from samforge.core.errors import InputError
from samforge.core.store import Schema, Store
from samforge.core.structure import value_from_json
from samforge.formats import LabelledPicture
from samforge.labelling.items import Item
from samforge.labelling.ontology import Ontology
from samforge.labelling.outcome import ItemFailure, Outcome, picture_from_body

NAME = "ledger.sqlite"
"""Its file in the output folder."""
_SCHEMA = Schema(
    application=0x53464C62,
    version=1,
    doing="labelling into",
    tables="""
CREATE TABLE IF NOT EXISTS items (
    name TEXT PRIMARY KEY, stamp TEXT NOT NULL, frames INTEGER NOT NULL,
    kind TEXT, message TEXT, exit_code INTEGER
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS labels (
    name TEXT NOT NULL, frame INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (name, frame)
);
CREATE TABLE IF NOT EXISTS numbers (name TEXT PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID;
""",
)


class OtherRun(InputError):
    """The output folder holds labels of another model, ontology, version or source."""


class Ledger(Store):
    """Which items are done, with their labels, and which failed and why."""

    def __init__(self, path: Path, *, restart: bool = False, most_pages: int | None = None) -> None:
        """Open a ledger, or begin one.

        Args:
            path: Its file.
            restart: Whether to forget what is there, at once or not at all.
            most_pages: How large the file may grow, in pages of 4 KiB; None as the disk allows.

        Raises:
            OutputError: Another run has it, or it cannot be written.
        """
        super().__init__(path, _SCHEMA, restart=restart, most_pages=most_pages)

    def identify(self, identity: Mapping[str, Any]) -> None:
        """Make sure that what is in it was labelled in the same way, or begin with this one.

        Raises:
            OtherRun: It was labelled in another way: see :class:`OtherRun`.
        """
        known = self.identity()
        if known is None:
            self.note("identity", json.dumps(dict(identity), sort_keys=True))
        elif known != json.loads(json.dumps(dict(identity))):
            raise OtherRun(_told(self.path.parent, known, identity))

    def identity(self) -> dict[str, Any] | None:
        """What it was labelled with; None at first."""
        known = self.noted("identity")
        return None if known is None else json.loads(known)

    def numbers(self, items: Sequence[Item]) -> list[int]:
        """The number of each item, from 1, which it keeps for as long as the ledger is there.

        The first listing of a source numbers its items in order; what is new in a later one comes
        behind all others, wherever it stands.
        """
        with self._errors(), self._transaction():
            known = dict(self._base.execute("SELECT name, number FROM numbers").fetchall())
            last = max(known.values(), default=0)
            fresh = [item.name for item in items if item.name not in known]
            new = {name: number for number, name in enumerate(fresh, last + 1)}
            self._base.executemany("INSERT INTO numbers VALUES (?, ?)", new.items())
        known |= new
        return [known[item.name] for item in items]

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
