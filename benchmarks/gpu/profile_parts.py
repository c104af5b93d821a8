# ruff: noqa: C901
"""Where the time of each part goes: every part in a process of its own, kernels by name.

    python benchmarks/gpu/profile_parts.py --out FILE [--engine package|compile] [--small]

Processes compile side by side and take turns on the GPU. ``compile`` runs the same lowered program
through torch.compile at one fixed size, for machines where packages do not load.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "4")

import torch
from _parts import Order, build, compiled, device_name, family_checkpoint, family_inputs, session
from _timing import Results, call_ms, kernels, synchronize
from _turns import turn

from samforge.runtime.device.graphs import Captured


def sizes_of(order: Order) -> list[dict[str, int]]:
    """Sizes to measure: the fixed one, or several."""
    fixed = {k: int(v) for k, v in (pair.split("=") for pair in order.fixed.split(",") if pair)}
    if fixed:
        return [{"batch": 1, "prompts": 1} | fixed]
    if order.part == "detector":
        return [{"batch": 1, "prompts": count} for count in (1, 4, 16)]
    return [{"batch": count, "prompts": count} for count in (1, 8)]


def one(order: Order, engine: str, folder: Path) -> None:
    """Build, time and profile one part."""
    device = device_name()
    results = Results(folder / f"{order.name}.result.json", 600)
    checkpoint = family_checkpoint(order.family, order.model, order.size)
    if engine == "package":
        results.add("build", build(order, folder, device))
        start = time.perf_counter()
        loaded: Any = session(order, folder)
        results.add("load s", round(time.perf_counter() - start, 2))
    else:
        loaded = compiled(order, device)
    for size in sizes_of(order):
        words = " ".join(f"{axis} {n}" for axis, n in size.items())
        inputs = loaded.placed(family_inputs(checkpoint, loaded.spec, size, 3))
        call = lambda i=inputs: loaded.run_tensors(i)  # noqa: E731
        start = time.perf_counter()
        outputs = call()
        synchronize()
        results.add(f"{words} first call s", round(time.perf_counter() - start, 1))
        bad = [name for name, value in outputs.items() if not value.isfinite().all()]
        results.add(f"{words} not finite", bad)
        with turn(folder):
            results.add(f"{words} launched ms", call_ms(call, rounds=20))
            if torch.cuda.is_available():
                captured = Captured(call, None)
                results.add(f"{words} graph ms", call_ms(captured.replay))
                results.add(f"{words} kernels", kernels(captured.replay))
    if torch.cuda.is_available():
        results.add("peak GiB", round(torch.cuda.max_memory_allocated() / 2**30, 3))


def main() -> None:
    """Start every part, then collect."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", type=json.loads)
    parser.add_argument("--engine", choices=("package", "compile"), default="package")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/packages"))
    parser.add_argument("--small", action="store_true", help="the tiny model: a dry run")
    parser.add_argument("--limit-s", type=float, default=300)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.one:
        one(Order(**options.one), options.engine, options.folder)
        return
    results = Results(options.out, options.limit_s)
    shared: dict[str, Any] = {"model": "tiny"} if options.small else {}
    fixed = {"fixed": "batch=1"} if options.engine == "compile" else {}
    both = {"fixed": "batch=1,prompts=1"} if options.engine == "compile" else {}
    orders = [
        Order(part="vision", precision="fp8", tuned=True, **fixed, **shared),
        Order(part="vision", precision="fp8", residual="half", **fixed, **shared),
        Order(part="vision", precision="bf16", **fixed, **shared),
        Order(part="detector", precision="bf16", **both, **shared),
    ]
    if options.small:
        orders = [orders[0], orders[3]]
    running = {}
    for order in orders:
        text = json.dumps({name: getattr(order, name) for name in order.__dataclass_fields__})
        command = [sys.executable, "-X", "faulthandler", __file__, "--one", text]
        command += ["--engine", options.engine, "--folder", str(options.folder)]
        log = (options.folder / f"{order.name}.log").open("w")
        running[order.name] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    for name, process in running.items():
        try:
            code: Any = process.wait(timeout=max(1.0, options.limit_s - results.elapsed_s))
        except subprocess.TimeoutExpired:
            process.kill()
            code = "out of time"
        found = options.folder / f"{name}.result.json"
        if found.exists():
            results.values["figures"][name] = json.loads(found.read_text())["figures"]
        results.add(f"{name} exit", code)
        if code != 0:
            lines = (options.folder / f"{name}.log").read_text().splitlines()
            print("\n".join(line for line in lines if "frame #" not in line)[-1800:])
    for name, figures in results.values["figures"].items():
        for key, value in figures.items() if isinstance(figures, dict) else ():
            if not key.endswith("kernels"):
                print(name, key, value)
                continue
            for row in value[:26]:
                print(f"   {row['ms']:8.4f} ms  {row['calls']:4d}x  {row['kernel'][:90]}")


if __name__ == "__main__":
    main()
