"""A process that labels chunks for another: ``python -m samforge.labelling.worker SOCKET``.

It is not forked, for sessions do not survive a fork, and it imports nothing of the caller's main
module. When the process that started it dies, its socket closes, and it ends.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection

from samforge.core.native import error_of_item
from samforge.labelling.engine import Chunk, labelled
from samforge.labelling.labeller import Labeller
from samforge.labelling.ontology import Ontology
from samforge.labelling.opening import Opening


def main(handle: int) -> None:
    """Serve until the other side closes.

    Args:
        handle: The socket, inherited.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that owns the ledger
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        _serve(Connection(handle))


def _serve(line: Connection) -> None:
    opening: Opening
    ontology: Ontology
    opening, ontology = line.recv()
    try:
        segmenter = opening.segmenter()
        labeller = Labeller(segmenter, ontology)
    except Exception as error:  # noqa: BLE001  raised by the other side
        line.send(error_of_item(error))
        return
    line.send(segmenter.processor)
    for outcomes in labelled(labeller, _asked(line)):
        line.send((outcomes, outcomes[-1].ended))


def _asked(line: Connection) -> Iterator[Chunk]:
    """Chunks as they come, until the other side closes; they are read ahead in a thread."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            yield line.recv()


if __name__ == "__main__":
    main(int(sys.argv[1]))
