"""Memory and time of many masks of a large picture, of this checkout and of another.

    python benchmarks/masks.py [--before CHECKOUT] [--out FILE]

Each side runs in a process of its own: it makes 100 masks of a 12-megapixel picture from logits,
reads how much resident memory that took at most and how much it takes in the end, then writes them
as COCO results. Both sides' results are compared by their hash.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Self

import numpy as np
from _conditions import conditions

MASKS = 100
SIZE_HW = (3000, 4000)
CELLS = 288
ROUNDS = 3
"""Of ``to_coco``; the median counts."""


def resident_mib() -> float:
    """Memory of this process that is in RAM."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Peak:
    """The most resident memory while it watches, read every two milliseconds."""

    def __init__(self) -> None:
        self.mib, self._done = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self.mib = max(self.mib, resident_mib())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def logits() -> np.ndarray[Any, np.dtype[np.float32]]:
    """Ellipses with noise on their edges, (MASKS, CELLS, CELLS): a tenth to a third of a side."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:CELLS, :CELLS] / CELLS
    planes = np.empty((MASKS, CELLS, CELLS), np.float32)
    for i in range(MASKS):
        (y, x), (down, across) = rng.uniform(0.2, 0.8, 2), rng.uniform(0.05, 0.17, 2)
        planes[i] = 8 * (1 - np.hypot((rows - y) / down, (columns - x) / across))
        planes[i] += rng.normal(0, 0.2, rows.shape)
    return planes


def one_side() -> dict[str, Any]:
    """Make, measure and write the masks with the samforge that this process imports."""
    from samforge.runtime import RawDetections, Thresholds, detections_from_raw

    raw = RawDetections(
        logits=np.linspace(5, 4, MASKS, dtype=np.float32),
        boxes=np.tile(np.array([0.1, 0.1, 0.9, 0.9], np.float32), (MASKS, 1)),
        masks=logits(),
        presence_logit=10.0,
    )
    settings: dict[str, Any] = {"label": "x", "thresholds": Thresholds()}
    # What is imported and taken at first use is no mask's.
    detections_from_raw(raw, size_hw=(64, 64), **settings).to_coco()
    before = resident_mib()
    start = time.perf_counter()
    with Peak() as peak:
        found = detections_from_raw(raw, size_hw=SIZE_HW, **settings)
    seconds = time.perf_counter() - start
    after = resident_mib()
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        results = found.to_coco()
        times.append(time.perf_counter() - start)
    return {
        "masks": len(found),
        "mean_covered_megapixels": round(float(np.mean(found.areas)) / 1e6, 3),
        "peak_mib": round(peak.mib - before, 1),
        "held_mib": round(after - before, 1),
        "post_process_seconds": round(seconds, 2),
        "to_coco_seconds": round(float(np.median(times)), 3),
        "sha256": hashlib.sha256(json.dumps(results).encode()).hexdigest(),
    }


def measured(checkout: Path) -> dict[str, Any]:
    """One side in a process of its own, with the samforge of a checkout."""
    done = subprocess.run(
        [sys.executable, __file__, "--side"],
        env={**os.environ, "PYTHONPATH": str(checkout / "src")},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    side: dict[str, Any] = json.loads(done.stdout)
    return side


def main() -> int:
    """Measure this checkout, and another one before it; 1 where they give different results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--before", type=Path, help="a checkout to compare with")
    parser.add_argument("--out", type=Path, help="JSON to write")
    parser.add_argument("--side", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.side:
        print(json.dumps(one_side()))
        return 0
    sides = {} if chosen.before is None else {"before": measured(chosen.before)}
    sides["after"] = measured(Path(__file__).parents[1])
    same = len({side.pop("sha256") for side in sides.values()}) == 1
    report = {
        "conditions": conditions(),
        "picture_hw": SIZE_HW,
        "cells": CELLS,
        "same_results": same,
        **sides,
    }
    text = json.dumps(report, indent=2)
    print(text)
    if chosen.out is not None:
        chosen.out.write_text(text + "\n", encoding="utf-8")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
