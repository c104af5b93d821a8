"""Processes that label, and how their ends are noticed."""

from __future__ import annotations

import socket
import struct
import sys
from collections import deque
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from samforge.core.errors import ItemError
from samforge.labelling.ontology import Ontology
from samforge.labelling.opening import Opening
from samforge.labelling.workers import Workers, _Worker


def test_a_process_that_ends_while_it_sends_has_ended() -> None:
    ours, theirs = socket.socketpair()
    worker = object.__new__(_Worker)
    worker.line, worker.asked = Connection(ours.detach()), deque([()])
    with theirs:
        theirs.sendall(struct.pack("!i", 1_000_000) + b"half of it")
    assert worker.answer() is None
    worker.line.close()


def test_a_process_that_ends_before_it_reads_is_told_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nsleep 0.3\nexit 3\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(ItemError, match="exit status 3"):
        Workers([Opening(bundle="x", digest="y")], Ontology.from_texts(["star"]))
