"""What a source raises is raised in its place: after all that came before it was given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, eq=False)
class Fault:
    """What ended a source."""

    error: Exception
    """To be raised by whoever has given what it holds back."""


def until_fault(items: Iterable[Item]) -> Iterator[Item | Fault]:
    """Items, and in place of an error the error: for readers that hold some of them back."""
    try:
        yield from items
    except Exception as error:  # noqa: BLE001  whoever reads raises it
        yield Fault(error)
