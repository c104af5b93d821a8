"""Labels chunks in several processes, one a device; one that dies takes one chunk with it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from samforge.core.closing import Closing
from samforge.core.errors import ItemError, SamforgeError
from samforge.labelling.engine import Chunk
from samforge.labelling.ontology import Ontology
from samforge.labelling.opening import Opening
from samforge.labelling.outcome import Outcome, failure_of

_WAITING = 2
"""Chunks that a process has: one that it labels and one that it reads meanwhile."""
_PATIENCE_SECONDS = 10.0


class Workers(Closing):
    """Processes that label; an engine for :func:`samforge.label`."""

    def __init__(self, openings: Sequence[Opening], ontology: Ontology) -> None:
        """Start them and wait until each has its model.

        Raises:
            SamforgeError: What a process said that could not load it.
        """
        self._ontology = ontology
        self._workers: list[_Worker] = []
        with ExitStack() as undo:
            undo.callback(self.close)
            self._workers += [_Worker(one, ontology) for one in openings]
            self.processor = self._workers[0].ready()
            for worker in self._workers[1:]:
                worker.ready()
            undo.pop_all()

    def __call__(self, chunks: Sequence[Chunk]) -> Iterator[list[Outcome]]:
        """Label chunks; outcomes come as they are ready.

        A chunk during which its process dies is given to another once, picture by picture; a
        picture that kills a process by itself is a failure of its own.
        """
        left = deque(chunks)
        suspects: set[Chunk] = set()
        for worker in self._workers:
            worker.feed(left)
        while busy := [worker for worker in self._workers if worker.asked]:
            lines = wait([worker.line for worker in busy])
            for worker in [one for one in busy if one.line in lines]:
                outcomes = worker.answer()
                if outcomes is None:
                    yield from self._buried(worker, left, suspects)
                else:
                    yield outcomes
                worker.feed(left)

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.close()

    def _buried(
        self, worker: _Worker, left: deque[Chunk], suspects: set[Chunk]
    ) -> Iterator[list[Outcome]]:
        """Start a process again and decide on what it had."""
        first, *others = worker.asked
        left.extendleft(reversed(others))
        told = worker.begin_again()
        if len(first) == 1 and first in suspects:
            number, item = first[0]
            error = ItemError(
                f"{item.uri}: the process that labelled it ended twice ({told}). It may need more "
                "memory than there is: label it alone, or with fewer --jobs."
            )
            yield [Outcome(number=number, failure=failure_of(item.name, error))]
        else:
            alone: list[Chunk] = [(one,) for one in first]
            suspects.update(alone)
            left.extendleft(reversed(alone))
        worker.ready()


class _Worker:
    """One process."""

    def __init__(self, opening: Opening, ontology: Ontology) -> None:
        self._opening, self._ontology = opening, ontology
        self.asked: deque[Chunk] = deque()
        """Chunks that it has, the one it is at first."""
        self._start()

    def ready(self) -> str:
        """Wait until it has its model; say where it runs."""
        said = self._received()
        if said is None:
            raise ItemError(
                f"A process that labels ended while it loaded the model ({self._end()}). "
                "It may need more memory than there is: give fewer --jobs."
            )
        if isinstance(said, SamforgeError):
            raise said
        return str(said)

    def feed(self, left: deque[Chunk]) -> None:
        """Give it work, as much as it may have at once."""
        while left and len(self.asked) < _WAITING:
            self.asked.append(left.popleft())
            try:
                self.line.send(self.asked[-1])
            except OSError:
                return  # its end is noticed where its answer is awaited

    def answer(self) -> list[Outcome] | None:
        """What it has labelled; None if it has died."""
        answer = self._received()
        if answer is None:
            return None
        outcomes, ended = answer
        if ended:
            self.asked.popleft()
        return list(outcomes)

    def begin_again(self) -> str:
        """Start another process in its place; say how the last one ended."""
        told = self._end()
        self.asked.clear()
        self._start()
        return told

    def close(self) -> None:
        """End it."""
        self.line.close()
        try:
            self._process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "samforge.labelling.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self.line: Connection = Connection(ours.detach())
        with suppress(OSError):  # its end is noticed where it has to be ready
            self.line.send((self._opening, self._ontology))

    def _received(self) -> Any:
        """What it sends next; None where it has ended, in the middle of it or before."""
        try:
            return self.line.recv()
        except (EOFError, OSError):
            return None

    def _end(self) -> str:
        self.line.close()
        code = self._process.wait()
        return f"signal {-code}" if code < 0 else f"exit status {code}"
