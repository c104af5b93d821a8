"""Things of which only so many may be under way."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

from samforge.core.errors import Overloaded


class VideoRuns:
    """How many videos are under way: each holds a tracker's memory."""

    def __init__(self, most: int) -> None:
        """Let so many run at the same time."""
        self._most, self._running, self._lock = most, 0, Lock()

    def begin(self) -> Place:
        """Begin one, before anything of it is read.

        Returns:
            Its place: close it when the video has ended, however it did.

        Raises:
            Overloaded: There are as many already.
        """
        with self._lock:
            if self._running >= self._most:
                raise Overloaded(
                    f"{self._most} videos are under way already, the most that this server "
                    "follows at the same time. Ask again later.",
                    retry_after_s=10.0,
                )
            self._running += 1
        return Place(self._end)

    def _end(self) -> None:
        with self._lock:
            self._running -= 1


class Place:
    """One of so many; it is given back once, however often it is closed."""

    def __init__(self, give_back: Callable[[], None]) -> None:
        """Hold it until :meth:`close`."""
        self._give_back, self._lock = give_back, Lock()
        self._held = True

    def close(self) -> None:
        """Give it back."""
        with self._lock:
            held, self._held = self._held, False
        if held:
            self._give_back()
