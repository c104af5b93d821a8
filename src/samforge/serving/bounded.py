"""Things of which only so many may be under way."""

from __future__ import annotations

from threading import Lock

from samforge.core.errors import Overloaded


class VideoRuns:
    """How many videos are under way: each holds a tracker's memory."""

    def __init__(self, most: int) -> None:
        """Let so many run at the same time."""
        self._most, self._running, self._lock = most, 0, Lock()

    def begin(self) -> None:
        """Begin one.

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

    def end(self) -> None:
        """End one."""
        with self._lock:
            self._running -= 1
