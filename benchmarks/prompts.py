"""Ten phrases on one image cost less than 1.6 times one: vision runs once, the detector is batched.

    python benchmarks/prompts.py BUNDLE

Both counts are measured in turn within one run, from the encoded PNG bytes to the masks, with the
text cache emptied before each call. The result is the ratio of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

from _conditions import write_result

import samforge
from samforge.core.timing import Timings
from samforge.models.tiny.scenes import draw_scene

PHRASES = (
    *("red circle", "star", "blue object", "green square", "yellow triangle"),
    *("purple ring", "orange cross", "white star", "black circle", "object"),
)


def measure(bundle: str, rounds: int) -> dict[str, object]:
    """Time one and ten phrases in turn on changing scenes."""
    milliseconds: dict[int, list[float]] = {1: [], 10: []}
    stages: dict[int, dict[str, list[float]]] = {1: {}, 10: {}}
    opened = samforge.open_bundle(bundle)
    segmenter = samforge.load(opened)
    for index in range(rounds + 3):
        image = draw_scene(index, split="demo").image
        for count, measured in milliseconds.items():
            segmenter.forget_phrases()
            timings = Timings()
            start = time.perf_counter()
            segmenter.predict(image, text=PHRASES[:count], timings=timings)
            elapsed = (time.perf_counter() - start) * 1e3
            if index < 3:  # warm-up
                continue
            measured.append(elapsed)
            for stage in timings.stages():
                stages[count].setdefault(stage.stage, []).append(stage.milliseconds)
    medians = {count: statistics.median(values) for count, values in milliseconds.items()}
    return {
        "claim": "ten phrases on one image cost less than 1.6 times one phrase",
        "model": opened.manifest.model,
        "rounds": rounds,
        "median_ms": {str(count): round(value, 2) for count, value in medians.items()},
        "median_ms_by_stage": {
            str(count): {name: round(statistics.median(v), 2) for name, v in by_stage.items()}
            for count, by_stage in stages.items()
        },
        "ratio": round(medians[10] / medians[1], 3),
        "limit": 1.6,
    }


def main() -> int:
    """Measure, write the result, and fail when the claim does not hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", help="a bundle of the tiny model")
    parser.add_argument("--rounds", type=int, default=50)
    options = parser.parse_args()
    result = measure(options.bundle, options.rounds)
    path = write_result(__file__, result)
    print(f"{result['median_ms']} ms, ratio {result['ratio']} (limit 1.6) -> {path.name}")
    return int(result["ratio"] >= result["limit"])  # type: ignore[operator]


if __name__ == "__main__":
    sys.exit(main())
