"""Runs an iterable ahead of its reader, in a thread and within a bound."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

from samforge.core.closing import Closing
from samforge.core.errors import ForkedSession, SettingError
from samforge.core.forks import after_fork

Item = TypeVar("Item")


class Prefetcher(Closing, Iterator[Item], Generic[Item]):
    """Gives the items of an iterable in order while a thread makes the next ones.

    At most ``ahead`` items wait, and the thread holds one more. Whatever the iterable raises is
    raised here, in its place. The thread ends when the items do, on ``close``, and when this
    object is dropped, each time after the item it is at.
    """

    def __init__(self, items: Iterable[Item], *, ahead: int, name: str) -> None:
        """Start at once.

        Args:
            items: Iterated in the thread; a generator is closed there.
            ahead: Most items that wait to be taken.
            name: Of the thread.

        Raises:
            SettingError: ``ahead`` is below 1.
        """
        if ahead < 1:
            raise SettingError(f"ahead is {ahead}. Give at least 1.")
        self._line: _Line[Item] = _Line(ahead)
        # The thread knows the line and not this object, so that dropping the object stops it. It
        # is a daemon because a reader may be dropped while the interpreter ends.
        self._thread = threading.Thread(
            target=_fill, args=(self._line, items), name=f"samforge-{name}", daemon=True
        )
        weakref.finalize(self, self._line.stop)
        _LINES.add(self._line)
        self._thread.start()

    def __next__(self) -> Item:
        """The next item, as soon as it is there."""
        return self._line.take()

    def has_next(self) -> bool:
        """Whether an item waits, so that ``next`` gives it at once."""
        return self._line.waits()

    @property
    def most_waiting(self) -> int:
        """Most items that have waited at one time."""
        return self._line.most

    def close(self) -> None:
        """Stop, and wait until the thread is done with the item it is at."""
        self._line.stop()
        self._thread.join()


class _Line(Generic[Item]):
    """Items that wait between two threads."""

    def __init__(self, bound: int) -> None:
        self.most = 0
        self._bound = bound
        self._changed = threading.Condition()
        self._items: deque[Item] = deque()
        self._ended = False
        self._error: BaseException | None = None

    def abandon(self) -> None:
        """In a child of a fork: nobody fills it any more, and a lock may be held for ever."""
        self._changed = threading.Condition()
        self._ended = True
        self._items.clear()
        self._error = ForkedSession(
            "A stream was begun before this process was forked, without its threads. "
            "Begin it here, after the fork."
        )

    def put(self, item: Item) -> bool:
        """Add an item when there is room; False when nobody wants it any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or len(self._items) < self._bound)
            if self._ended:
                return False
            self._items.append(item)
            self.most = max(self.most, len(self._items))
            self._changed.notify_all()
            return True

    def waits(self) -> bool:
        """Whether there is an item to take."""
        with self._changed:
            return bool(self._items)

    def take(self) -> Item:
        """Remove the first item; what ended the line is raised once it is empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._items)
            if self._items:
                self._changed.notify_all()
                return self._items.popleft()
            error, self._error = self._error, None
        if error is not None:
            raise error
        raise StopIteration

    def end(self, error: BaseException | None = None) -> None:
        """No more items come; those that wait can still be taken."""
        with self._changed:
            if not self._ended:
                self._ended, self._error = True, error
            self._changed.notify_all()

    def stop(self) -> None:
        """Nobody takes any more items: those that wait are dropped."""
        with self._changed:
            self._ended, self._error = True, None
            self._items.clear()
            self._changed.notify_all()


_LINES: weakref.WeakSet[_Line[Any]] = weakref.WeakSet()


def _abandon() -> None:
    for line in list(_LINES):
        line.abandon()


after_fork(_abandon)


def _fill(line: _Line[Item], items: Iterable[Item]) -> None:
    try:
        iterator = iter(items)
        try:
            for item in iterator:
                if not line.put(item):
                    break
        finally:
            # A generator may hold files or threads of its own; lists have nothing to close.
            if close := getattr(iterator, "close", None):
                close()
    except BaseException as error:  # noqa: BLE001  raised again by the reader
        line.end(error)
    else:
        line.end()
