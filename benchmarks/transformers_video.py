"""samforge's video sessions beside transformers' Sam3VideoModel: same weights, same frames.

    python benchmarks/transformers_video.py                     # 8 held-out clips of 32 frames
    python benchmarks/transformers_video.py --clips 1 --first 1 --frames 18 --processes 2

The bundle's parts compute what transformers does (``reference = "transformers"``), so that what is
left is the session: rules, memories, output. transformers runs as it is, with its faults 1 to 4
mended (docs/what-equals-what.md), and with all but one mended, which tells what each one does.
Temporal IoU is of every track of transformers with its partner; a track without one has 0.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import cache, lru_cache
from multiprocessing import get_context
from typing import Any

import numpy as np
from _conditions import write_result
from _stock_video import (
    FLOOR,
    GROUPS,
    rules_with,
    samforge_frames,
    stock_frames,
    stock_video,
    transformers_segmenter,
)

from samforge.measure.tracks import compare_tracks
from samforge.models.tiny.crossing import draw_crossing

CLAIM = "a session with transformers' rules follows what transformers' mended model follows"
PHRASES = ("object",)
MENDED, STOCK = "faults 1 to 4 mended", "as it is"
ROWS: dict[str, tuple[set[int], set[int]]] = {
    MENDED: (set(), set()),
    **{f"fault {fault} alone": ({fault}, set()) for fault in (1, 2, 3, 4)},
    STOCK: ({1, 2, 3, 4}, set()),
    "as it is, and samforge with faults 1, 3, 4": ({1, 2, 3, 4}, {1, 3, 4}),
}
"""Faults that transformers is left with, and those that samforge's rules have."""


@lru_cache(maxsize=1)
def ours() -> Any:
    """The segmenter of samforge, once a process."""
    import torch

    torch.set_num_threads(1)
    return transformers_segmenter()


def measured(number: int, frames: int, group: str) -> dict[str, dict[str, Any]]:
    """Every row of one clip."""
    segmenter = ours()
    clip = [scene.image for scene in draw_crossing(number, frames=frames)]
    settings, changes = GROUPS[group]

    @cache
    def follow(own: frozenset[int]) -> Any:
        return samforge_frames(segmenter, clip, PHRASES, rules_with(own, **changes))

    @cache
    def theirs(faults: frozenset[int]) -> Any:
        return list(stock_frames(stock_video(faults, **settings), clip, PHRASES))

    rows = {}
    for name, (faults, own) in ROWS.items():
        one = compare_tracks(theirs(frozenset(faults)), follow(frozenset(own)))
        print(f"{group}, clip {number}, {name}: worst {one.worst:.5f}", file=sys.stderr, flush=True)
        rows[name] = {
            "temporal_iou": list(one.temporal_iou.values()),
            "lost": len(one.lost),
            "extra": len(one.extra),
            "born_alike": one.born_alike,
            "ended_alike": one.ended_alike,
        }
    return rows


def summed(clips: Iterable[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Rows of all clips as one table."""
    counted = list(clips)
    table = {}
    for name in ROWS:
        rows = [clip[name] for clip in counted]
        ious = [value for row in rows for value in row["temporal_iou"]]
        table[name] = {
            "tracks": len(ious),
            "worst": round(min(ious, default=1.0), 5),
            "mean": round(float(np.mean(ious)), 5) if ious else 1.0,
            "below_floor": sum(value < FLOOR for value in ious),
            **{
                key: sum(row[key] for row in rows)
                for key in ("lost", "extra", "born_alike", "ended_alike")
            },
        }
    return table


def claims(tables: dict[str, dict[str, dict[str, Any]]]) -> dict[str, bool]:
    """Whether the mended model is followed, in both settings."""
    found = {}
    for group, table in tables.items():
        row = table[MENDED]
        found[f"{group}: same objects"] = row["lost"] == row["extra"] == 0
        found[f"{group}: every temporal IoU"] = row["worst"] >= FLOOR
    return found


def main() -> int:
    """Measure, write the result, and fail when a claim does not hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--first", type=int, default=0, help="number of the first clip")
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        asked = {
            group: [
                pool.submit(measured, number, options.frames, group)
                for number in range(options.first, options.first + options.clips)
            ]
            for group in GROUPS
        }
        tables = {group: summed(one.result() for one in jobs) for group, jobs in asked.items()}
    result = {
        "claim": CLAIM,
        "clips": options.clips,
        "first_clip": options.first,
        "frames": options.frames,
        "phrases": list(PHRASES),
        "floor": FLOOR,
        "settings": {group: settings for group, (settings, _) in GROUPS.items()},
        "rows": tables,
        "holds": claims(tables),
    }
    written = write_result(__file__, result)
    print(json.dumps(result["rows"], indent=2))
    print(json.dumps(result["holds"], indent=2))
    print(f"-> {written.name}", file=sys.stderr)
    return 0 if all(result["holds"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
