"""From mask logits on a GPU to detections on the host, of this checkout and of another.

    python benchmarks/gpu/masks.py [--before CHECKOUT] [--out FILE]

1, 4, 16 and 64 masks of a 4K picture, ellipses of a tenth to a third of its sides, go through
``ResultReader`` as after a detector: with their number not known before the host has read the
scores, and begun ahead, as in a video. Each side runs in a process of its own, one after the other
on the same GPU, and their masks are compared. To have a checkout of an earlier commit:

    git worktree add build/before COMMIT
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

MASKS = (1, 4, 16, 64)
SIZE_HW = (2160, 3840)
QUERIES, CELLS = 200, 288
WARM, ROUNDS = 10, 50
SECONDS = 240
"""A side that takes longer is stopped."""


def logits() -> torch.Tensor:
    """Ellipses, (1, 1, QUERIES, CELLS, CELLS), bfloat16, on the GPU."""
    rng = torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(*[torch.arange(CELLS) / CELLS] * 2, indexing="ij")
    middle = 0.2 + 0.6 * torch.rand(QUERIES, 2, 1, 1, generator=rng)
    radius = 0.05 + 0.12 * torch.rand(QUERIES, 2, 1, 1, generator=rng)
    distance = torch.hypot(
        (rows - middle[:, 0]) / radius[:, 0], (columns - middle[:, 1]) / radius[:, 1]
    )
    return (8 * (1 - distance))[None, None].to("cuda", torch.bfloat16)


def summary(count: int) -> torch.Tensor:
    """Of which ``count`` are admitted, (1, 1, QUERIES, ``results.COLUMNS``)."""
    from samforge.runtime.device import results

    # Older checkouts have scores and boxes alone.
    values = torch.full((1, 1, QUERIES, getattr(results, "COLUMNS", 5)), 0.25)
    values[..., 3:] = 0.75
    values[..., 0] = 0.1
    values[0, 0, :count, 0] = torch.linspace(0.95, 0.6, count)
    return values.cuda()


def one_side() -> dict[str, Any]:
    """Time the samforge that this process imports."""
    from samforge.runtime.device import reader as side
    from samforge.runtime.device.reader import ResultReader
    from samforge.runtime.postprocess import Thresholds

    question: Any
    if hasattr(side, "Asked"):
        from samforge.runtime import question_from

        question = side.Asked(question=question_from("x"), sizes_hw=(SIZE_HW,))
    else:  # a checkout before prompts were the same on every device
        question = side.Question(phrases=("x",), sizes_hw=(SIZE_HW,), thresholds=Thresholds())
    planes, digest = logits(), hashlib.sha256()
    figures: dict[str, Any] = {}
    for count in MASKS:
        values = summary(count)
        for name, ahead in (("", False), (" begun ahead", True)):
            reader = ResultReader(torch.device("cuda"), ahead, "meta")
            times = []
            with torch.inference_mode():
                for _ in range(WARM + ROUNDS):
                    torch.cuda.synchronize()
                    start = time.perf_counter()
                    (found,) = reader.detections(reader.pending(planes, values, question))
                    times.append(1e3 * (time.perf_counter() - start))
            figures[f"{count} masks{name} ms"] = round(statistics.median(times[WARM:]), 3)
        assert len(found) == count
        for mask in found.masks:
            digest.update(np.packbits(mask).tobytes())
    start = time.perf_counter()
    found.to_coco()
    figures[f"to_coco of {MASKS[-1]} s"] = round(time.perf_counter() - start, 3)
    figures["sha256"] = digest.hexdigest()
    return figures


def measured(checkout: Path) -> dict[str, Any]:
    """One side in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--side"],
        env={**os.environ, "PYTHONPATH": f"{checkout / 'src'}:{os.environ.get('PYTHONPATH', '')}"},
        stdout=subprocess.PIPE,
        timeout=SECONDS,
        check=True,
        text=True,
    )
    side: dict[str, Any] = json.loads(done.stdout)
    return side


def main() -> int:
    """Time both sides; 1 where they give different masks or the limit does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--before", type=Path, help="a checkout to compare with")
    parser.add_argument("--out", type=Path, help="JSON to write")
    parser.add_argument("--side", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.side:
        print(json.dumps(one_side()))
        return 0
    sides = {} if chosen.before is None else {"before": measured(chosen.before)}
    sides["after"] = measured(Path(__file__).parents[2])
    same = len({side.pop("sha256") for side in sides.values()}) == 1
    more = sides["after"]["16 masks ms"] - sides["after"]["1 masks ms"]
    report = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "picture_hw": SIZE_HW,
        "cells": CELLS,
        "same_masks": same,
        "16_masks_cost_more_than_one_ms": round(more, 3),
        **sides,
    }
    text = json.dumps(report, indent=2)
    print(text)
    if chosen.out is not None:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.out.write_text(text + "\n", encoding="utf-8")
    return 0 if same and more <= 0.5 else 1


if __name__ == "__main__":
    sys.exit(main())
