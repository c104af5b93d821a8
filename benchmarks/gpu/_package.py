"""The contender ``package``: the detector through AOTInductor, with every size left dynamic."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

from _parts import Order, build, device_name, family_checkpoint, family_inputs, family_spec
from _timing import call_ms
from _turns import Bench

from samforge.backends.inductor.backend import InductorSession
from samforge.runtime.device.graphs import Captured
from samforge.runtime.device.session import placed

PROMPTS = (1, 4, 16)
LOAD = """
import sys, time
from pathlib import Path
import torch
from samforge.backends.inductor.backend import loaded_package

torch.zeros(1, device=sys.argv[2])
start = time.perf_counter()
loaded_package(Path(sys.argv[1]))
print(time.perf_counter() - start)
"""
"""The program of a process that does nothing else."""


def package(bench: Bench, name: str) -> None:
    """Build it, load it, and time it at several numbers of phrases."""
    results, device = bench.results(name), device_name()
    order = Order(part="detector", precision="bf16", model=bench.model, size=bench.size)
    if device == "cpu":
        order = replace(order, attention="auto")
    checkpoint = family_checkpoint("sam3", bench.model, bench.size)
    loaded: list[InductorSession] = []
    with results.section("package", until=bench.compile_until) as go:
        if go:
            results.add("build", build(order, bench.folder, device))
            path = bench.folder / f"{order.name}.aoti.pt2"
            results.add("load s", seconds_to_load(path))
            loaded.append(InductorSession(path, family_spec("sam3", checkpoint, "detector")))
    with bench.measuring(name):
        for session in loaded:
            for count in PROMPTS:
                words = f"detector batch 1 prompts {count}"
                with results.section(words) as go:
                    if go:
                        results.add(f"{words} ms", prompts_ms(bench, session, checkpoint, count))


def seconds_to_load(path: Path) -> float:
    """Load a package in a process of its own, which has compiled nothing; imports do not count."""
    command = [sys.executable, "-c", LOAD, str(path), device_name()]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return round(float(run.stdout.splitlines()[-1]), 2)


def prompts_ms(bench: Bench, session: InductorSession, checkpoint: Any, count: int) -> float:
    """Time one call for so many phrases, its inputs taking turns."""
    calls: list[Any] = []
    for seed in (3, 4, 5):
        sizes = {"batch": 1, "prompts": count}
        inputs = placed(session, family_inputs(checkpoint, session.spec, sizes, seed))
        call = partial(session.run_on_device, inputs)
        calls.append(Captured(call, None).replay if session.captures else call)
    turns = cycle(calls)
    return call_ms(lambda: next(turns)(), bench.rounds)  # noqa: PLW0108  # a turn a call
