"""The contender ``package``: the detector through AOTInductor, with every size left dynamic."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from itertools import cycle
from typing import Any

from _parts import Order, build, device_name, family_checkpoint, family_inputs, family_spec
from _timing import call_ms
from _turns import Bench

from samforge.backends.inductor.backend import InductorSession
from samforge.runtime.device.graphs import Captured

PROMPTS = (1, 4, 16)


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
            spec = family_spec("sam3", checkpoint, "detector")
            start = time.perf_counter()
            loaded.append(InductorSession(bench.folder / f"{order.name}.aoti.pt2", spec))
            results.add("load s", round(time.perf_counter() - start, 2))
    with bench.measuring(name):
        for session in loaded:
            for count in PROMPTS:
                words = f"detector batch 1 prompts {count}"
                with results.section(words) as go:
                    if go:
                        results.add(f"{words} ms", prompts_ms(bench, session, checkpoint, count))


def prompts_ms(bench: Bench, session: InductorSession, checkpoint: Any, count: int) -> float:
    """Time one call for so many phrases, its inputs taking turns."""
    calls: list[Any] = []
    for seed in (3, 4, 5):
        sizes = {"batch": 1, "prompts": count}
        inputs = session.placed(family_inputs(checkpoint, session.spec, sizes, seed))
        call = partial(session.run_tensors, inputs)
        calls.append(Captured(call, None).replay if session.device.type == "cuda" else call)
    turns = cycle(calls)
    return call_ms(lambda: next(turns)(), bench.rounds)  # noqa: PLW0108  # a turn a call
