"""SAM 3 on one GPU: transformers and samforge over the same span, in one run.

    python benchmarks/gpu/run.py --out DIR [--contenders fp8,stock,stock-max] [--limit-s 500]
    python benchmarks/gpu/run.py --out DIR --family dinov3

Every contender has a process of its own; they compile side by side and take turns on the GPU, one
contender's measurements at a time, when all have compiled. Weights and images are random: this is
about speed alone. Figures are medians after a warm-up; images and inputs take turns. The exit code
is 1 when a limit of ``claims.py`` does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

from _timing import Results
from _turns import Bench
from claims import backbone_rows, judged, table

CONTENDERS = {
    **dict.fromkeys(
        (
            "fp8",
            "bf16",
            "batch2",
            "batch4",
            "batch8",
            "prompts4",
            "prompts16",
            "small",
            "fp8-transformers",
            "prompts16-transformers",
        ),
        "_samforge.segment",
    ),
    "package": "_package.package",
    **dict.fromkeys(("stock", "stock-max"), "_stock.stock"),
    **dict.fromkeys(("dinov3-stock", "dinov3-bf16", "dinov3-fp8"), "_backbone.backbone"),
}
"""The function that runs a contender, in a process of its own."""
FAMILIES = {
    "sam3": ("fp8", "bf16", "batch2", "batch4", "batch8", "prompts4", "prompts16", "small",
             "package"),
    "dinov3": ("dinov3-stock", "dinov3-bf16", "dinov3-fp8"),
}  # fmt: skip
"""Contenders unless others are named. transformers' SAM 3 wants a run of its own: see
gpu-measurements.md."""
MEASURING_S = {"stock": 65.0}
"""Of the limit, kept for measuring a contender: whoever still compiles then is stopped."""
OTHERS_S = 20.0
"""The same for contenders that are not named there."""
WORKSPACE = {"TORCH_CUBLASLT_UNIFIED_WORKSPACE": "0", "CUBLASLT_WORKSPACE_SIZE": "0"}
"""For every contender: with a workspace cuBLASLt takes kernels that have it cleared first, 4 us
around each of 72 products of the vision part. See gpu-measurements.md."""
GRACE_S = 20.0
"""Until one that does not stop compiling is ended."""


def options_from_arguments() -> argparse.Namespace:
    """Read the command line; the settings of ``Bench`` are options of the same name."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for run.json")
    parser.add_argument("--one", choices=tuple(CONTENDERS), help=argparse.SUPPRESS)
    parser.add_argument("--contenders", help="names with commas between them")
    parser.add_argument("--family", choices=tuple(FAMILIES), default="sam3")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/contenders"))
    parser.add_argument("--limit-s", type=float, default=500)
    for field in fields(Bench):
        if field.name in ("folder", "contenders", "compile_until", "until"):
            continue
        flag, kind = f"--{field.name.replace('_', '-')}", str(field.type)
        if kind == "bool":
            parser.add_argument(flag, action="store_true")
        elif kind == "tuple[int, int]":
            parser.add_argument(flag, type=int, nargs=2, default=field.default)
        else:
            parser.add_argument(
                flag, type=int if kind.startswith("int") else str, default=field.default
            )
    return parser.parse_args()


def bench_from_options(options: argparse.Namespace) -> Bench:
    """The run's settings and deadlines, which begin now."""
    named = options.contenders.split(",") if options.contenders else FAMILIES[options.family]
    unknown = [name for name in named if name not in CONTENDERS]
    if unknown:
        sys.exit(f"No contender {', '.join(unknown)}. There are: {', '.join(CONTENDERS)}.")
    known = {field.name for field in fields(Bench)} & set(vars(options)) - {"contenders"}
    until = time.time() + options.limit_s
    seconds = sum(MEASURING_S.get(name, OTHERS_S) for name in named)
    measuring = min(seconds, options.limit_s / 2)
    return Bench(
        contenders=tuple(named),
        compile_until=until - measuring,
        until=until,
        **{name: getattr(options, name) for name in known - {"source"}},
        source=tuple(options.source),
    )


def start(bench: Bench) -> dict[str, subprocess.Popen[bytes]]:
    """Start every contender, with its share of the processors for compiling."""
    threads = max(2, (os.cpu_count() or 2) // len(bench.contenders))
    environment = {"TORCHINDUCTOR_COMPILE_THREADS": str(threads), **WORKSPACE, **os.environ}
    running = {}
    for name in bench.contenders:
        for left in (bench.ready(name), bench.folder / f"{name}.result.json"):
            left.unlink(missing_ok=True)
        command = [sys.executable, "-X", "faulthandler", __file__]
        command += ["--one", name, "--folder", str(bench.folder)]
        with (bench.folder / f"{name}.log").open("w") as log:
            running[name] = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment
            )
    return running


def watch(bench: Bench, running: dict[str, subprocess.Popen[bytes]]) -> dict[str, Any]:
    """Wait for all; gives exit codes. One that is gone or late must not keep others waiting."""
    late = set()
    while any(process.poll() is None for process in running.values()):
        for name, process in running.items():
            mark = bench.ready(name)
            if process.poll() is None:
                compiling = not mark.exists() and time.time() > bench.compile_until + GRACE_S
                if compiling or time.time() > bench.until:
                    process.kill()
                    process.wait()
                    late.add(name)
            if process.poll() is not None:
                mark.touch()
        time.sleep(0.2)
    return {n: "out of time" if n in late else p.returncode for n, p in running.items()}


def collect(bench: Bench, results: Results, codes: dict[str, Any]) -> None:
    """Put every contender's figures and failures into the run's."""
    values = results.values
    values["exit"] = codes
    for name, code in codes.items():
        found = bench.folder / f"{name}.result.json"
        kept = json.loads(found.read_text()) if found.exists() else {"figures": {}, "failed": {}}
        values["figures"][name] = kept["figures"]
        values["failed"] |= {f"{name}: {words}": why for words, why in kept["failed"].items()}
        if code != 0:
            values["failed"][name] = f"exit {code}"
            lines = (bench.folder / f"{name}.log").read_text().splitlines()
            print(f"--- {name}: exit {code}")
            print("\n".join(line for line in lines if "frame #" not in line)[-600:])
    for words, why in values["failed"].items():
        print(f"FAILED {words}: {why[:150]}")


def main() -> int:
    """Start every contender, collect what they found, and judge it."""
    options = options_from_arguments()
    if options.one:
        module, function = CONTENDERS[options.one].split(".")
        getattr(import_module(module), function)(Bench.load(options.folder), options.one)
        return 0
    if options.out is None:
        sys.exit("Say where results go: --out DIR.")
    options.folder.mkdir(parents=True, exist_ok=True)
    bench = bench_from_options(options)
    bench.save()
    results = Results(options.out / "run.json", options.limit_s)
    values = results.values
    values["contenders"] = list(bench.contenders)
    skipped = ("folder", "contenders", "compile_until", "until")
    values["settings"] = {
        field.name: getattr(bench, field.name)
        for field in fields(Bench)
        if field.name not in skipped
    } | {"limit_s": options.limit_s, "environment": WORKSPACE}
    collect(bench, results, watch(bench, start(bench)))
    values["seconds"] = round(results.elapsed_s)
    values["holds"] = judged(values["figures"], set(bench.contenders))
    values["backbone"] = backbone_rows(values["figures"])
    results.write()
    print(table(values["figures"], values["holds"]))
    return int(not all(row["holds"] for row in values["holds"]))


if __name__ == "__main__":
    sys.exit(main())
