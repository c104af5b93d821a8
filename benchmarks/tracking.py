"""How well the tiny model follows objects: 200 held-out clips by clicks, by text, without memory.

    python benchmarks/tracking.py                           # 200 clips of 32 frames
    python benchmarks/tracking.py --clips 40 --processes 2
    python benchmarks/tracking.py --rows FILE               # go on with what a run measured before
    python benchmarks/tracking.py --device cuda             # the parts on a GPU, in fp32 there too
    python benchmarks/tracking.py --bundle DIR --name NAME  # a bundle with its tracker

By default the parts run as they were trained, in fp32 on the processor, with no export between.
On a GPU nothing is rounded to TF32, the rules and figures stay on the host.
Every clip is a row of its own in ``--rows``: a run that was stopped goes on behind its last one,
and one of other weights or frames begins anew. Figures are means over objects.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from _conditions import write_result

import samforge
from samforge.core.files import sha256_of
from samforge.measure.clips import ClipFigures, Followed, measure_clip, summed_clips
from samforge.measure.identities import Identities
from samforge.measure.regions import ObjectScore
from samforge.models import tiny
from samforge.models.tiny.crossing import FRAMES
from samforge.models.tiny.held_out_clips import labelled_clips
from samforge.runtime import Segmenter

CLAIM = "the tiny tracker follows objects through occlusion by what it remembers"
FLOORS = {
    "clicks: J&F": 0.85,
    "text: J&F": 0.85,
    "text: IDF1": 0.90,
    "IoU after 1 click": 0.85,
    "IoU after 3 clicks": 0.92,
}
"""At least."""
CONTROL = 0.3
"""By how much J&F of clicks falls, at least, when nothing is remembered."""


@lru_cache(maxsize=1)
def segmenter_of(bundle: str | None, device: str) -> Segmenter:
    """What is measured, once a process."""
    if bundle is not None:
        return samforge.load(bundle, threads=1, device=device)
    import torch
    from _eager import eager_segmenter

    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False
    return eager_segmenter(device)


def measured(number: int, frames: int, bundle: str | None, device: str) -> dict[str, Any]:
    """One clip as a row."""
    began = time.perf_counter()
    clip = next(labelled_clips(1, first=number, frames=frames))
    figures = measure_clip(segmenter_of(bundle, device), clip)
    return {"clip": number, "seconds": round(time.perf_counter() - began, 1), **asdict(figures)}


def figures_from_row(row: dict[str, Any]) -> ClipFigures:
    """The figures of one clip again."""

    def followed(one: dict[str, Any] | None) -> Followed | None:
        if one is None:
            return None
        return Followed(
            objects=tuple(ObjectScore(**score) for score in one["objects"]),
            identities=Identities(**one["identities"]),
        )

    ways = {name: followed(row[name]) for name in ("clicked", "emptied", "named")}
    clicks = {
        name: tuple(tuple(own) for own in row[name]) for name in ("click_iou", "click_iou_raw")
    }
    return ClipFigures(**ways, **clicks)


def rows_of(path: Path, head: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Rows that were measured of the same thing before; else the file begins anew."""
    lines = path.read_text().splitlines() if path.is_file() else []
    if not lines or json.loads(lines[0]) != head:
        path.write_text(json.dumps(head) + "\n")
        return {}
    return {row["clip"]: row for row in map(json.loads, lines[1:])}


def missing_rows(
    numbers: list[int], frames: int, bundle: str | None, device: str, processes: int
) -> Iterator[dict[str, Any]]:
    """Measure clips in processes of one thread each, in the order in which they are done."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        asked = [pool.submit(measured, one, frames, bundle, device) for one in numbers]
        for done in as_completed(asked):
            yield done.result()


def claims(figures: dict[str, Any]) -> dict[str, bool]:
    """Whether each floor holds."""
    values = {
        "clicks: J&F": figures["clicks"]["j_and_f"],
        "text: J&F": figures["text"]["j_and_f"],
        "text: IDF1": figures["text"]["idf1"],
        "IoU after 1 click": figures["iou_after_clicks"][0],
        "IoU after 3 clicks": figures["iou_after_clicks"][2],
    }
    fall = figures["clicks"]["j_and_f"] - figures["clicks, no memory"]["j_and_f"]
    return {name: values[name] >= floor for name, floor in FLOORS.items()} | {
        "no memory is clearly worse": fall >= CONTROL
    }


def main() -> int:
    """Measure, write the result, and fail when a floor does not hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--frames", type=int, default=FRAMES)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--bundle", help="its parts, instead of those that were trained")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--name", default="tracking", help="of the result")
    parser.add_argument("--rows", type=Path, help="a line for every clip, to go on with")
    parser.add_argument("--json", action="store_true", help="print the result")
    options = parser.parse_args()
    name = "the parts as trained" if options.bundle is None else "bundle"
    digest = (
        sha256_of(tiny.TRACKER_WEIGHTS_PATH)
        if options.bundle is None
        else samforge.open_bundle(options.bundle).digest
    )
    head = {"of": name, "digest": digest, "device": options.device, "frames": options.frames}
    with tempfile.TemporaryDirectory() as scratch:
        path = options.rows or Path(scratch) / "rows.jsonl"
        rows = rows_of(path, head)
        wanted = [one for one in range(options.clips) if one not in rows]
        with path.open("a") as file:
            asked = (options.frames, options.bundle, options.device, options.processes)
            for row in missing_rows(wanted, *asked):
                rows[row["clip"]] = row
                file.write(json.dumps(row) + "\n")
                file.flush()
                print(f"clip {row['clip']}: {row['seconds']} s, {len(rows)} done", file=sys.stderr)
    kept = [rows[one] for one in range(options.clips)]
    figures = summed_clips(map(figures_from_row, kept)).to_dict()
    result = {
        "claim": CLAIM,
        **head,
        "clips": options.clips,
        "figures": figures,
        "floors": FLOORS,
        "control": CONTROL,
        "holds": claims(figures),
    }
    written = write_result(f"{options.name}.py", result)
    print(json.dumps(result if options.json else result["holds"], indent=2))
    print(f"-> {written.name}", file=sys.stderr)
    return 0 if all(result["holds"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
