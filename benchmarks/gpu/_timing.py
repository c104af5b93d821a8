"""Timing on a GPU (or, for a dry run, on a processor), and results written as they come."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

PACKAGES = ("torch", "triton", "transformers", "numpy")


def gpu_conditions() -> dict[str, Any]:
    """GPU, driver and versions; nothing that names the machine."""
    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "python": ".".join(map(str, sys.version_info[:3])),
        "cores": os.cpu_count(),
        "versions": {},
    }
    for package in PACKAGES:
        try:
            found["versions"][package] = version(package)
        except Exception:  # noqa: BLE001  # not installed in a dry run
            found["versions"][package] = None
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["cuda"] = torch.version.cuda
        found["cudnn"] = torch.backends.cudnn.version()
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, check=False)
        found["driver"] = answer.stdout.partition("\n")[0]  # a line for each GPU
    else:
        found["gpu"] = None
    return found


class OutOfTime(BaseException):
    """A section's time is over. No ``Exception``: kernel tuning goes on after those."""


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise :class:`OutOfTime` in the middle of what takes longer; main thread only."""

    def ring(*_: object) -> None:
        raise OutOfTime(f"stopped after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Results:
    """Figures by name, written after every one, within a time limit."""

    def __init__(self, path: Path, limit_s: float) -> None:
        self.path, self.start, self.limit_s = path, time.monotonic(), limit_s
        self.values: dict[str, Any] = {"conditions": gpu_conditions(), "figures": {}, "failed": {}}

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    def add(self, name: str, value: Any) -> None:
        """Keep one figure and write them all."""
        self.values["figures"][name] = value
        print(f"{self.elapsed_s:6.1f}s  {name}: {value}", flush=True)
        self.write()

    def fail(self, name: str, why: str) -> None:
        """Keep why there is no figure."""
        self.values["failed"][name] = why[:2000]
        print(f"{self.elapsed_s:6.1f}s  NOT {name}: {why[:600]}", flush=True)
        self.write()

    def write(self) -> None:
        """Write everything so far."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.values, indent=1) + "\n")

    @contextmanager
    def section(
        self, name: str, needs_s: float = 0.0, until: float | None = None
    ) -> Iterator[bool]:
        """Run a section unless too little time is left; its failure ends the section alone.

        Args:
            name: For what is said of it.
            needs_s: Seconds below which it is not begun.
            until: Time (``time.time``) at which it is stopped; None lets it end.
        """
        left = self.limit_s - self.elapsed_s if until is None else until - time.time()
        if left <= needs_s:
            self.fail(name, f"skipped: {left:.0f} s left, it needs {needs_s:.0f}")
            yield False
            return
        try:
            with nullcontext() if until is None else alarm(left):
                yield True
        except (Exception, OutOfTime) as error:  # noqa: BLE001  # a lost section must not lose the run
            self.fail(name, repr(error))
            traceback.print_exc(limit=-6)


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def call_times(call: Callable[[], Any], rounds: int = 50, warm_up: int = 5) -> list[float]:
    """Times of one call by CUDA events, launches included, shortest first; milliseconds."""
    for _ in range(warm_up):
        call()
    synchronize()
    times = []
    for _ in range(rounds):
        if torch.cuda.is_available():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end))
        else:
            begin = time.perf_counter()
            call()
            times.append((time.perf_counter() - begin) * 1e3)
    return sorted(times)


def call_ms(call: Callable[[], Any], rounds: int = 50, warm_up: int = 5) -> float:
    """Median time of one call by CUDA events, launches included."""
    return round(statistics.median(call_times(call, rounds, warm_up)), 4)


def p95(times: Sequence[float]) -> float:
    """95th percentile of sorted times."""
    return times[min(len(times) - 1, int(0.95 * len(times)))]


def wall_ms(call: Callable[[int], Any], rounds: int = 50, warm_up: int = 5) -> dict[str, float]:
    """Median and 95th percentile of one call on the host's clock, everything finished."""
    for index in range(warm_up):
        call(index)
    synchronize()
    times = []
    for index in range(rounds):
        begin = time.perf_counter()
        call(index)
        synchronize()
        times.append((time.perf_counter() - begin) * 1e3)
    times.sort()
    return {
        "median": round(statistics.median(times), 3),
        "p95": round(p95(times), 3),
        "min": round(times[0], 3),
    }


def kernel_ms(calls: Sequence[Callable[[], Any]], repeats: int = 8, rounds: int = 12) -> float:
    """Time of one call inside a CUDA graph: what it costs with no launch gap around it.

    Args:
        calls: The same work on different inputs, so that no cache holds all of them.
        repeats: How often the graph runs them all.
        rounds: Replays; the median counts.
    """
    if not torch.cuda.is_available():
        return call_ms(calls[0], rounds=3, warm_up=1)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            for call in calls:
                call()
    return round(call_ms(graph.replay, rounds=rounds, warm_up=2) / (repeats * len(calls)), 5)


def kernels(call: Any, count: int = 3) -> list[dict[str, Any]]:
    """Kernels of one call by share of its time."""
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(count):
            call()
        synchronize()
    rows = [
        {
            "kernel": row.key[:110],
            "calls": row.count // count,
            "ms": round(row.device_time_total / count / 1e3, 4),
        }
        for row in seen.key_averages()
    ]
    return sorted(rows, key=lambda row: -row["ms"])[:32]
