"""What tracking costs on a processor: frames a second by number of objects, and memory by frames.

    python benchmarks/tracking_cost.py BUNDLE                  # speed, then memory
    python benchmarks/tracking_cost.py BUNDLE --only speed
    python benchmarks/tracking_cost.py BUNDLE --only memory --frames 2000 --out FILE

Speed is of a whole frame, from pixels to masks with ids: vision, the detector for one phrase that
is nowhere, the tracker for objects that boxes showed, and the rules. Their number stays what it is,
for no rule ends an object that was shown.

Memory is of a session that follows five shapes by a phrase and by boxes. Its frames come again and
again from a clip that was encoded before: what could grow is what the session remembers, and 10,000
frames take minutes in place of hours. ``--vision`` runs the vision part on every frame, too.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _conditions import conditions

import samforge
from samforge.measure.clips import SharedFrames
from samforge.models.tiny import SIZE, draw_crossing
from samforge.runtime.tracking import ObjectPrompt, TrackerParts, VideoSession

CLAIM = "a frame costs less than linearly in its objects, and memory does not grow with frames"
OBJECTS = (1, 8, 32)
WARM_UP, TIMED = 10, 12
"""Frames: by then objects attend to as many memories as they ever do."""
NOWHERE = "purple cross"
EARLY, LATE = 200, 10_000
RESULT = Path(__file__).parent / "results" / "tracking_cost.json"
GROWTH = 1.05
"""Resident memory after the late frame over that after the early one, at most."""


def boxes(count: int) -> list[tuple[float, float, float, float]]:
    """Squares side by side over the picture."""
    side = int(np.ceil(np.sqrt(count)))
    cell = SIZE / side
    return [
        (x * cell + 1, y * cell + 1, (x + 1) * cell - 1, (y + 1) * cell - 1)
        for y in range(side)
        for x in range(side)
    ][:count]


def begun(parts: TrackerParts, first: Any, count: int, phrase: str) -> VideoSession:
    """A session behind its first frame, with objects that were shown on it."""
    session = VideoSession(parts, text=phrase)
    session.step(first)
    for box in boxes(count):
        session.add(ObjectPrompt(box_xyxy=box))
    return session


def frame_ms(parts: TrackerParts, clip: Sequence[Any], count: int) -> dict[str, float]:
    """Milliseconds of a frame with so many objects."""
    session = begun(parts, clip[0], count, NOWHERE)
    taken = []
    for number in range(1, WARM_UP + TIMED):
        start = time.perf_counter()
        session.step(clip[number % len(clip)])
        taken.append(1000 * (time.perf_counter() - start))
    if len(session.ids) != count:
        raise SystemExit(f"{len(session.ids)} objects are followed, {count} were shown.")
    steady = np.array(taken[WARM_UP - 1 :])
    return {
        "median_ms": round(float(np.median(steady)), 1),
        "min_ms": round(float(steady.min()), 1),
        "frames_per_second": round(1000 / float(np.median(steady)), 2),
        "state_mib": round(session.size_bytes / 2**20, 3),
    }


def speed(parts: TrackerParts, clip: Sequence[Any]) -> dict[str, Any]:
    """A row a number of objects."""
    rows = {}
    for count in OBJECTS:
        rows[str(count)] = frame_ms(parts, clip, count)
        print(f"{count} objects: {rows[str(count)]}", file=sys.stderr)
    return rows


def resident_mib() -> float:
    """Memory of this process that is not on disk."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def endless(clip: Sequence[Any]) -> Iterator[Any]:
    """The clip to and fro, so that nothing jumps."""
    while True:
        yield from clip
        yield from clip[-2:0:-1]


def memory(
    parts: TrackerParts, clip: Sequence[Any], frames: int, keep: Callable[[dict[str, Any]], None]
) -> None:
    """Resident memory, and what the session remembers, on the way; kept at every mark."""
    session = begun(parts, clip[0], 4, "object")
    marks = sorted({one for one in (EARLY, 1000, 2000, 5000, LATE, frames) if one <= frames})
    rows, start = {}, time.perf_counter()
    source = endless(clip)
    next(source)
    for number in range(1, frames + 1):
        session.step(next(source))
        if number in marks:
            rows[str(number)] = {
                "resident_mib": round(resident_mib(), 1),
                "session_mib": round(session.size_bytes / 2**20, 3),
                "objects": len(session.ids),
                "seconds": round(time.perf_counter() - start, 1),
            }
            print(f"frame {number}: {rows[str(number)]}", file=sys.stderr)
            keep(rows)


def claims(result: dict[str, Any]) -> dict[str, bool]:
    """What holds, of what was measured."""
    found = {}
    if "speed" in result:
        cost = {int(count): row["median_ms"] for count, row in result["speed"].items()}
        for few, many in itertools.pairwise(OBJECTS):
            found[f"{many} objects cost less than {many // few} times {few}"] = (
                cost[many] < many / few * cost[few]
            )
    if "memory" in result:
        rows = result["memory"]["rows"]
        last = max(rows, key=int)
        growth = rows[last]["resident_mib"] / rows[str(EARLY)]["resident_mib"]
        found[f"memory after {last} frames within 5 % of {EARLY}"] = growth <= GROWTH
    return found


def write(path: Path, result: dict[str, Any]) -> None:
    """Write what was measured, and what holds of it."""
    result["holds"] = claims(result)
    path.write_text(json.dumps(result, indent=2) + "\n")


def main() -> int:
    """Measure, write the result, and fail when a claim does not hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path, help="with its tracker")
    parser.add_argument("--only", choices=("speed", "memory"))
    parser.add_argument("--frames", type=int, default=LATE)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--vision", action="store_true", help="encode every frame for memory, too")
    parser.add_argument("--out", type=Path, default=RESULT, help="what was measured before stays")
    options = parser.parse_args()
    clip = [scene.image for scene in draw_crossing(0, frames=16, split="demo")]
    segmenter = samforge.load(options.bundle, threads=options.threads)
    parts = segmenter.tracker_parts()
    path: Path = options.out
    result = json.loads(path.read_text()) if options.only and path.is_file() else {}
    result["claim"] = CLAIM
    own = {
        "digest": samforge.open_bundle(options.bundle).digest,
        "threads": options.threads or "all",
    }
    if options.only != "memory":
        result["speed"] = speed(parts, clip)
        result["speed_conditions"] = conditions() | own
    if options.only != "speed":
        shared = parts if options.vision else SharedFrames(parts)
        result["memory_conditions"] = conditions() | own

        def keep(rows: dict[str, Any]) -> None:
            # A run that is stopped leaves what it measured.
            result["memory"] = {"vision_every_frame": options.vision, "rows": rows}
            write(path, result)

        memory(shared, clip, options.frames, keep)
    write(path, result)
    print(json.dumps(result["holds"], indent=2))
    print(f"-> {path.name}", file=sys.stderr)
    return 0 if all(result["holds"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
