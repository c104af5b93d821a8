"""Progress on standard error: bars on a terminal, plain lines or nothing elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from samforge.apps.cli.output import print_note, stderr
from samforge.core.words import escaped

if TYPE_CHECKING:
    from samforge.core.manifest import StepResult


@contextmanager
def progress_bar(what: str, total: int | None, *, as_json: bool) -> Iterator[Callable[[], None]]:
    """Show a bar over ``total`` things while the body runs; gone when it ends.

    Without a total it counts and shows no time left. Silent with ``--json`` and where standard
    error is no terminal.

    Yields:
        Call it after each thing.
    """
    console = stderr()
    if as_json or not console.is_terminal:
        yield lambda: None
        return
    with _progress(console, TimeRemainingColumn(compact=True)) as progress:
        task = progress.add_task(escaped(what), total=total)
        yield lambda: progress.advance(task)


@contextmanager
def counting_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar that is told how far it is; the time left follows from what this run did.

    Yields:
        Call it with what is done and how much there is.
    """
    with _progress(stderr(), TimeRemainingColumn(compact=True)) as progress:
        task = progress.add_task(escaped(what), total=None)
        started = False

        def count(done: int, total: int) -> None:
            nonlocal started
            if not started:  # what earlier runs did took no time of this one
                progress.reset(task, total=total, completed=done)
                started = True
            progress.update(task, completed=done, total=total)

        yield count


class BuildProgress:
    """A bar over the steps of a build, with the current step and the time so far.

    Where standard error is no terminal, each step is one plain line; with ``--json``, nothing.
    Use it as a context manager around ``samforge.build``.
    """

    def __init__(self, *, as_json: bool) -> None:
        console = stderr()
        self._lines = not as_json and not console.is_terminal
        self._bar = None if as_json or self._lines else _progress(console, TimeElapsedColumn())
        self._place = ""

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("loading PyTorch and the checkpoint", total=None)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def started(self, step: str, part: str, index: int, total: int) -> None:
        """A step begins; ``index`` counts from 0."""
        self._place = f"[{index + 1}/{total}]"
        if self._bar is not None:
            name = escaped(f"{step} {part}".strip())
            self._bar.update(self._task, description=name, completed=index, total=total)

    def finished(self, result: StepResult) -> None:
        """A step ended, or its earlier result was taken over."""
        if self._bar is not None:
            self._bar.advance(self._task)
        elif self._lines:
            how = "taken over" if result.resumed else f"{result.seconds:.1f} s"
            name = " ".join(filter(None, (result.name, result.part)))
            print_note(f"{self._place} {name}: {how}", style="")


def _progress(console: Console, time: ProgressColumn) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        time,
        console=console,
        transient=True,
        # Results go to standard output, which may be a pipe: the bar must not take them over.
        redirect_stdout=False,
    )
