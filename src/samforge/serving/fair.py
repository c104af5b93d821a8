"""One line of work for each client, and turns among them."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Clients take turns, whatever the length of their lines: one item of each, round after round.

    Not safe to use from several threads: its owner has a lock.
    """

    def __init__(self) -> None:
        self._lines: OrderedDict[str, deque[T]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        return (item for line in self._lines.values() for item in line)

    def push(self, client: str, item: T) -> None:
        """Put an item at the end of a client's line."""
        self._lines.setdefault(client, deque()).append(item)
        self._count += 1

    def pop(self) -> T | None:
        """Take the next item, or None where there is none."""
        if not self._lines:
            return None
        client, line = self._lines.popitem(last=False)
        item = line.popleft()
        if line:
            self._lines[client] = line  # behind all others
        self._count -= 1
        return item

    def take(self, wanted: Callable[[T], bool], most: int) -> list[T]:
        """Take items that go with something else, out of their turn, at most so many."""
        taken: list[T] = []
        for client in list(self._lines):
            kept: deque[T] = deque()
            for item in self._lines[client]:
                (taken if len(taken) < most and wanted(item) else kept).append(item)
            if kept:
                self._lines[client] = kept
            else:
                del self._lines[client]
        self._count -= len(taken)
        return taken

    def remove(self, client: str, item: T) -> bool:
        """Take one item out of a client's line.

        Returns:
            Whether it was there.
        """
        line = self._lines.get(client)
        if line is None or item not in line:
            return False
        line.remove(item)
        if not line:
            del self._lines[client]
        self._count -= 1
        return True
