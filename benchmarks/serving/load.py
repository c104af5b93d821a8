"""Loads a server over HTTP, open-loop and closed-loop, and says what came of it.

    python benchmarks/serving/load.py URL --mode closed --clients 16 --images FOLDER --requests 200

Standard library and nothing else, so that the same client loads every server. Open-loop sends at
fixed times, whatever has come back: the time of a request counts from when it should have been
sent, as in a queue that does not wait for its clients.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

BOUNDARY = "loadloadload"


@dataclass(kw_only=True)
class Outcome:
    """What came of a load."""

    statuses: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    """Of those that were answered."""
    refused_seconds: list[float] = field(default_factory=list)
    """Of those that were refused."""
    without_retry: int = 0
    """Refusals that did not say when to come again."""
    wall: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, status: str, seconds: float, retry: bool) -> None:
        """Count one."""
        with self.lock:
            self.statuses[status] += 1
            if status == "200":
                self.seconds.append(seconds)
            else:
                self.refused_seconds.append(seconds)
                self.without_retry += not retry

    def summary(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "statuses": dict(self.statuses),
            "answered_a_second": round(len(self.seconds) / self.wall, 3) if self.wall else 0.0,
            "p50_ms": percentile(self.seconds, 0.5),
            "p99_ms": percentile(self.seconds, 0.99),
            "refused_p99_ms": percentile(self.refused_seconds, 0.99),
            "refusals_without_retry_after": self.without_retry,
            "seconds": round(self.wall, 2),
        }


def percentile(values: Sequence[float], share: float) -> float | None:
    """In milliseconds; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e3, 2)


def form(image: bytes, fields: Sequence[tuple[str, str]], file: str = "image") -> tuple[bytes, str]:
    """A body and its content type."""
    parts = [
        f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields
    ]
    parts.append(
        f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="{file}"; filename="a.png"\r\n'
        "content-type: image/png\r\n\r\n".encode()
        + image
        + f"\r\n--{BOUNDARY}--\r\n".encode()
    )
    return b"".join(parts), f"multipart/form-data; boundary={BOUNDARY}"


class Client:
    """One connection that stays open."""

    def __init__(self, url: str, file: str = "image") -> None:
        self._file = file
        where = urlparse(url)
        self._host, self._port, self._path = where.hostname, where.port, where.path
        self._connection = http.client.HTTPConnection(str(self._host), self._port, timeout=120)

    def ask(self, image: bytes, fields: Sequence[tuple[str, str]]) -> tuple[str, bool, bytes]:
        """Status, whether it says when to come again, and the body."""
        body, kind = form(image, fields, self._file)
        try:
            self._connection.request("POST", self._path, body, {"content-type": kind})
            answer = self._connection.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            return type(error).__name__, False, b""
        return str(answer.status), answer.getheader("retry-after") is not None, data

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def closed_loop(
    url: str,
    images: Sequence[bytes],
    fields: Sequence[tuple[str, str]],
    *,
    clients: int,
    requests: int,
    file: str = "image",
) -> Outcome:
    """So many clients, each of which asks again as soon as it has an answer."""
    outcome, numbers = Outcome(), iter(range(requests))
    lock = threading.Lock()

    def work() -> None:
        client = Client(url, file)
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                client.close()
                return
            start = time.perf_counter()
            status, retry, _ = client.ask(images[number % len(images)], fields)
            outcome.add(status, time.perf_counter() - start, retry)

    _run([work] * clients, outcome)
    return outcome


def open_loop(
    url: str,
    images: Sequence[bytes],
    fields: Sequence[tuple[str, str]],
    *,
    rate: float,
    seconds: float,
    connections: int = 256,
) -> Outcome:
    """So many requests a second, whatever has come back."""
    outcome, count = Outcome(), int(rate * seconds)
    numbers, lock = iter(range(count)), threading.Lock()
    begin = time.perf_counter() + 0.2

    def work() -> None:
        client = Client(url)
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                client.close()
                return
            due = begin + number / rate
            time.sleep(max(0.0, due - time.perf_counter()))
            status, retry, _ = client.ask(images[number % len(images)], fields)
            outcome.add(status, time.perf_counter() - due, retry)

    _run([work] * min(connections, count), outcome)
    return outcome


def _run(works: Sequence[Any], outcome: Outcome) -> None:
    threads = [threading.Thread(target=work) for work in works]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outcome.wall = time.perf_counter() - start


def main() -> None:
    """Print what came of a load as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--mode", choices=("open", "closed"), required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--field", action="append", default=[], help="NAME=VALUE")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--rate", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    given = parser.parse_args()
    images = [path.read_bytes() for path in sorted(given.images.iterdir())]
    fields = [tuple(one.split("=", 1)) for one in given.field]
    if given.mode == "closed":
        outcome = closed_loop(
            given.url, images, fields, clients=given.clients, requests=given.requests
        )
    else:
        outcome = open_loop(given.url, images, fields, rate=given.rate, seconds=given.seconds)
    json.dump(outcome.summary(), sys.stdout)


if __name__ == "__main__":
    main()
