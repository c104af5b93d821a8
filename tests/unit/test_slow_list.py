"""The table of slow tests names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.conftest import slow_tests

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", sorted(slow_tests()))
def test_it_is_there(name: str) -> None:
    file, _, function = name.partition("::")
    path, function = ROOT / file, function.partition("[")[0].rpartition("::")[2]
    assert path.is_file(), f"{file} is gone: mend tests/slow.txt"
    text = path.read_text(encoding="utf-8")
    if function.startswith("*"):
        return
    assert re.search(rf"def {re.escape(function)}\(", text), f"{file} has no {function}"
