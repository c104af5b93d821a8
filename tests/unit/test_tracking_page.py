"""The tables of docs/tracking-rules.md are the constants."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from samforge.runtime.tracking import META, TRANSFORMERS, MemoryRules, Rules

PAGE = Path(__file__).resolve().parents[2] / "docs/tracking-rules.md"


def rows(first: str) -> list[list[str]]:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |"))
    end = next(i for i in range(start, len(lines)) if not lines[i].startswith("|"))
    return [[cell.strip(" `") for cell in line.split("|")[1:4]] for line in lines[start + 2 : end]]


@pytest.mark.parametrize("kind", [Rules, MemoryRules])
def test_constants_are_those_of_the_code(kind: type) -> None:
    meta, other = (META, TRANSFORMERS) if kind is Rules else (META.memory, TRANSFORMERS.memory)
    names = [item.name for item in fields(kind) if item.name != "memory"]
    wanted = [[name, str(getattr(meta, name)), str(getattr(other, name))] for name in names]
    found = rows(f"`{kind.__name__}`")
    assert sorted(found) == sorted(wanted)
