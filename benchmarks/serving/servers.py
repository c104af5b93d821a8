"""Servers to measure, started as users start them, and what is read of their processes."""

from __future__ import annotations

import math
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import samforge

HERE = Path(__file__).parent
FIELDS = [("text", "red circle")]


class TimeLeft:
    """How long one measurement may go on: what it has until then counts, with its number."""

    def __init__(self, minutes: float) -> None:
        self._seconds, self._end = 60 * minutes, math.inf

    def is_over(self) -> bool:
        """Whether nothing more is begun; time counts from the first call, once servers are up."""
        self._end = min(self._end, time.monotonic() + self._seconds)
        return time.monotonic() > self._end


@contextmanager
def samforge_server(bundle: Path, *words: str) -> Iterator[tuple[str, int]]:
    """Our server as users start it; its URL and process."""
    log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # open as long as the process
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "samforge.apps.cli",
            "serve",
            f"tiny={bundle}",
            "--port",
            "0",
            *words,
        ],
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        log.seek(0)
        assert found, log.read()
        wait_for(f"{found[0]}/health/ready")
        yield found[0], process.pid
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(60)
        log.close()


@contextmanager
def other_server(python: Path, script: str, bundle: Path) -> Iterator[str]:
    """A server of another kind, in an environment of its own, over the same library call."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    source = str(Path(samforge.__file__).parents[1])
    log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # open as long as the process
    process = subprocess.Popen(
        [str(python), str(HERE / script), str(bundle), str(port)],
        env={**os.environ, "PYTHONPATH": source},
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}/predict"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        log.close()


def wait_for(url: str, seconds: float = 180) -> None:
    """Until it answers 200."""
    import urllib.error
    import urllib.request

    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pass
        if time.monotonic() > end:
            raise TimeoutError(f"{url} is not ready")
        time.sleep(0.3)


def metric(url: str, name: str, **labels: str) -> float:
    """A figure of the server's metrics, summed over its other labels."""
    import urllib.request

    with urllib.request.urlopen(f"{url}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    total = 0.0
    for line in text.splitlines():
        if line.startswith(name) and all(f'{k}="{v}"' in line for k, v in labels.items()):
            total += float(line.rpartition(" ")[2])
    return total


def resident_mib(pid: int) -> float:
    """Memory of a process that is in RAM."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def processor_seconds(pid: int) -> float:
    """Time that a process has had on processors."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
