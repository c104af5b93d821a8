"""Answers that are on their way: begun now, waited for later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")
Other = TypeVar("Other")


class Pending(Generic[Value]):
    """What was begun and is asked for once it is needed; on the host it may be there already."""

    __slots__ = ("_finish", "_value")

    def __init__(self, finish: Callable[[], Value]) -> None:
        """Keep how to end it.

        Args:
            finish: Waits for the answer; called at most once with success.
        """
        self._finish: Callable[[], Value] | None = finish
        self._value: Value

    @classmethod
    def of(cls, value: Value) -> Pending[Value]:
        """An answer that is there."""
        return cls(lambda: value)

    def result(self) -> Value:
        """The answer; waits for it where it is not there yet.

        Raises:
            SamforgeError: What was begun failed: each call says it again.
        """
        if self._finish is not None:
            self._value = self._finish()
            self._finish = None  # and all that it holds
        return self._value

    def then(self, change: Callable[[Value], Other]) -> Pending[Other]:
        """What becomes of the answer, made when it is asked for."""
        return Pending(lambda: change(self.result()))
