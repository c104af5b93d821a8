"""Things that end with a ``with`` block."""

from __future__ import annotations

from types import TracebackType
from typing import Self


class Leaving:
    """Gives ``with`` to whatever ends otherwise where its block raised an error."""

    __slots__ = ()

    def leave(self, kind: type[BaseException] | None) -> None:
        """End.

        Args:
            kind: Of the error that the block raised; None without one.
        """
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.leave(kind)


class Closing(Leaving):
    """Gives ``with`` to whatever has a ``close``, however its block ends."""

    __slots__ = ()

    def close(self) -> None:
        """Let go of everything."""
        raise NotImplementedError

    def leave(self, kind: type[BaseException] | None) -> None:  # noqa: ARG002
        """Close it."""
        self.close()
