"""Where the time of the whole span goes: every kernel of one call, and every step by itself.

    python benchmarks/gpu/trace.py --out FILE [--contender fp8]
    python benchmarks/gpu/trace.py --out FILE --from trace.json.gz    # of torch's profiler, kept

A picture of 4K in pinned memory to one mask on the host, in the environment of ``run.py``. Kernels
are those of one call in the middle of several, with the gap before each; under the profiler the
processor is slower than alone.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from _samforge import PLANS, Contender, admitting
from _spans import PHRASE, sources
from _timing import gpu_conditions, synchronize, wall_ms
from _turns import Bench
from run import WORKSPACE
from torch.profiler import ProfilerActivity, profile

CALLS = 4
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
"""Categories of the profiler's events."""
UPLOAD_US = 100.0
"""A copy to the device that takes longer is the picture's: a call begins with it."""
KEPT = 40
"""Kernels of each stage, by the time they take with the gaps before them."""


def steps(bench: Bench, contender: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Compile a contender's parts; time the span and its steps, then trace it."""
    made = Contender(bench, contender)
    made.compile()
    segmenter = made.segmenter()
    by_source = sources(bench.source)
    pictures = by_source["4K pinned"]
    levels = [admitting(segmenter, picture, [PHRASE], 1) for picture in pictures]
    with torch.inference_mode():
        placed = [segmenter._executor._upload(picture).clone() for picture in pictures]  # noqa: SLF001  # its steps are what is timed

    def span(images: Sequence[Any]) -> Any:
        def call(index: int) -> None:
            one = index % len(images)
            segmenter.predict(images[one], text=[PHRASE], threshold=levels[one])

        return call

    calls = {
        "whole, 4K pinned": span(pictures),
        "whole, 4K pageable": span(by_source["4K pageable"]),
        "whole, 4K on the device": span(placed),
        "upload, 4K pinned": lambda i: segmenter._executor._upload(pictures[i % len(pictures)]),  # noqa: SLF001
        "resize, 4K": lambda i: segmenter._executor._network.resize(placed[i % len(placed)]),  # noqa: SLF001
    }
    figures = {words: wall_ms(call, bench.rounds) for words, call in calls.items()}
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for index in range(CALLS):
            calls["whole, 4K pinned"](index)
            synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        seen.export_chrome_trace(str(path))
        return figures, json.loads(path.read_text())["traceEvents"]


def kernels_by_stage(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sum up one call of a trace: kernels, time and gaps of vision, detector and the rest."""
    events = [e for e in events if e.get("ph") == "X" and e.get("cat") in ON_DEVICE]
    events = sorted(events, key=lambda event: event["ts"])
    uploads = [
        event["ts"] for event in events if "HtoD" in event["name"] and event["dur"] > UPLOAD_US
    ]
    begin, end = uploads[CALLS // 2], uploads[CALLS // 2 + 1]
    call = [event for event in events if begin <= event["ts"] < end]
    # Text features are copied into place between the parts; scores leave when the detector is done.
    texts = [i for i, e in enumerate(call) if "DtoD" in e["name"] and e["ts"] - begin > 5000]
    scores = next(i for i, e in enumerate(call) if "DtoH" in e["name"])
    first = next(
        i for i, e in enumerate(call) if "patch" in e["name"] or "constant_pad" in e["name"]
    )
    stages = {
        "before": call[:first],
        "vision": call[first : texts[0]],
        "detector": call[texts[-1] : scores],
        "after": call[scores:],
    }
    return {"ms": round((call[-1]["ts"] + call[-1]["dur"] - begin) / 1e3, 3)} | {
        stage: _summed(part) for stage, part in stages.items()
    }


def _summed(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    rows: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
    before = events[0]["ts"]
    for event in events:
        grid = event.get("args", {}).get("grid")
        row = rows[f"{event['name'][:90]} {grid or ''}".strip()]
        gap = max(0.0, event["ts"] - before)
        row[0], row[1], row[2] = row[0] + 1, row[1] + event["dur"], row[2] + gap
        before = event["ts"] + event["dur"]
    ordered = sorted(rows.items(), key=lambda item: -item[1][1] - item[1][2])
    return {
        "kernels": len(events),
        "busy_us": round(sum(row[1] for row in rows.values()), 1),
        "gaps_us": round(sum(row[2] for row in rows.values()), 1),
        "longest": [
            {"kernel": name, "calls": row[0], "us": round(row[1], 1), "gaps_us": round(row[2], 1)}
            for name, row in ordered[:KEPT]
        ],
    }


def main() -> None:
    """Trace, or read a trace, and write what it says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--contender", choices=tuple(PLANS), default="fp8")
    parser.add_argument("--from", type=Path, dest="trace", help="a trace of torch's profiler")
    options = parser.parse_args()
    if options.trace is None and not set(WORKSPACE) <= set(os.environ):
        # torch has read them by now: begin again.
        os.execve(sys.executable, [sys.executable, *sys.argv], {**WORKSPACE, **os.environ})
    if options.trace is not None:
        with gzip.open(options.trace, "rt") as file:
            result: dict[str, Any] = kernels_by_stage(json.load(file)["traceEvents"])
    else:
        folder = Path(tempfile.mkdtemp())
        now = time.time()
        bench = Bench(
            folder=folder,
            contenders=(options.contender,),
            compile_until=now + 400,
            until=now + 550,
        )
        figures, events = steps(bench, options.contender)
        result = {"conditions": gpu_conditions(), "steps": figures, **kernels_by_stage(events)}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    for stage in ("before", "vision", "detector", "after"):
        part = result[stage]
        print(
            f"{stage}: {part['kernels']} kernels, {part['busy_us']} us and {part['gaps_us']} idle"
        )


if __name__ == "__main__":
    main()
