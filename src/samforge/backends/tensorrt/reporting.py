"""What a library says while it builds or loads: messages and progress, as its own base classes.

Both classes derive from the library's, which is imported late; so they are made by functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

Progress: TypeAlias = Callable[[str, float], None]
"""Takes the name of the phase and the share of the whole that is done, 0 to 1."""

ERRORS = ("ERROR", "INTERNAL_ERROR")
_MOST = 200


def new_logger(trt: Any) -> Any:
    """Make a logger that keeps warnings and errors in ``messages``, as (severity, text)."""

    class Messages(trt.ILogger):  # type: ignore[misc]  # the library has no types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[tuple[str, str]] = []

        def log(self, severity: Any, text: str) -> None:
            name = str(severity).rpartition(".")[2]
            if name in (*ERRORS, "WARNING") and len(self.messages) < _MOST:
                self.messages.append((name, text.strip()))

    return Messages()


def texts(logger: Any, *severities: str) -> tuple[str, ...]:
    """Messages of some severities in order, each once."""
    return tuple(dict.fromkeys(text for name, text in logger.messages if name in severities))


def new_monitor(trt: Any, progress: Progress) -> Any:
    """Make a progress monitor that calls ``progress``.

    What the callback raises stops the build and is kept in ``error``: an exception must not pass
    through the library's own frames.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the library has no types
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.tree = Phases()
            self.error: BaseException | None = None

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self.tree.start(name, parent, steps)
            self.tell(name)

        def step_complete(self, name: str, step: int) -> bool:
            self.tree.step(name, step)
            self.tell(name)
            return self.error is None

        def phase_finish(self, name: str) -> None:
            self.tree.finish(name)
            self.tell(name)

        def tell(self, name: str) -> None:
            if self.error is not None:
                return
            try:
                progress(name, self.tree.done())
            except BaseException as error:  # noqa: BLE001  # raised again after the build
                self.error = error

    return Monitor()


class Phases:
    """Nested phases of a build and the share of the whole that is done."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[str | None, int, int]] = {}
        self._done = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins inside its parent's current step."""
        self._open[name] = (parent, max(1, steps), 0)

    def step(self, name: str, step: int) -> None:
        """One of its steps is over; steps count from 0."""
        if name in self._open:
            parent, steps, _ = self._open[name]
            self._open[name] = (parent, steps, min(step + 1, steps))

    def finish(self, name: str) -> None:
        """It is over."""
        self._open.pop(name, None)
        if not self._open:
            self._done = 1.0

    def done(self) -> float:
        """Share of the whole; never goes back."""
        for name in self._open:
            self._done = max(self._done, self._share(name))
        return self._done

    def _share(self, name: str) -> float:
        """Where a phase stands in the whole: its parent's place plus its part of one step there."""
        parent, steps, finished = self._open[name]
        inside = finished / steps
        if parent is None or parent not in self._open:
            return inside
        _, parent_steps, parent_finished = self._open[parent]
        if parent_finished >= parent_steps:
            return self._share(parent)
        start, width = self._share(parent), self._width(parent)
        return start + inside * width / parent_steps

    def _width(self, name: str) -> float:
        """Share of the whole that a phase takes."""
        parent, _, _ = self._open[name]
        if parent is None or parent not in self._open:
            return 1.0
        return self._width(parent) / self._open[parent][1]
