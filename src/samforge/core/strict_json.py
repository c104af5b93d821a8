"""JSON as samforge writes it, and nothing looser: what a file may not hold is refused by name.

Python's own reader takes the last of two equal keys, NaN, numbers of any length and any depth. Two
readers of one file could then see two different things, and the deep ones end in RecursionError.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

MOST_DEPTH = 32
"""Tables and lists inside one another; samforge's own files nest less than 10."""
MOST_DIGITS = 40
"""Characters of a number; the longest float has 24."""
LARGEST = 2**63 - 1
"""Whole numbers lie between it and its negative, so that every language reads them alike."""

_STRINGS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_BRACKETS = re.compile(r"[\[\]{}]")


class StrictJsonError(ValueError):
    """A text is not the JSON that samforge writes; whoever reads a file names the file."""


def strict_json(text: str) -> Any:
    """Read JSON; a key given twice, a number out of range or too much depth is an error.

    Raises:
        StrictJsonError: With what is wrong.
    """
    _check_depth(text)
    try:
        return json.loads(
            text,
            object_pairs_hook=_table,
            parse_int=_whole,
            parse_float=_real,
            parse_constant=_no_constant,
        )
    except StrictJsonError:
        raise
    except ValueError as error:
        raise StrictJsonError(f"it is not valid JSON: {error}") from error


def _check_depth(text: str) -> None:
    """Before the reader, which recurses."""
    depth = 0
    for bracket in _BRACKETS.finditer(_STRINGS.sub("", text)):
        depth += 1 if bracket[0] in "[{" else -1
        if depth > MOST_DEPTH:
            raise StrictJsonError(
                f"it nests deeper than {MOST_DEPTH} levels, which is not valid JSON of samforge"
            )


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise StrictJsonError(f"it gives the key {twice!r:.80} twice")
    return table


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS or abs(int(digits)) > LARGEST:
        raise StrictJsonError(f"the number {digits:.20}… is out of range")
    return int(digits)


def _real(digits: str) -> float:
    if len(digits) > MOST_DIGITS or not math.isfinite(float(digits)):
        raise StrictJsonError(f"the number {digits:.20}… is out of range")
    return float(digits)


def _no_constant(name: str) -> NoReturn:
    raise StrictJsonError(f"it holds {name}, which is no JSON")
