r"""What a tracker in 8 bits loses: J&F, IDF1 and switches beside fp32's, on held-out clips.

    python benchmarks/tracking_bits.py build/tracked build/tracked-int8
    python benchmarks/tracking_bits.py build/tracked build/tracked-fp8 --name tracking_fp8 \
        --clips 200 --processes 8

Both bundles are asked for the shapes of each clip by phrases and by clicks on its first frame, as
``samforge compare --data clips:N`` asks them; here processes share the clips.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from _conditions import write_result

import samforge
from samforge.core.targets import target_from_name
from samforge.measure.video_accuracy import VideoAccuracy, accuracy_from_counts
from samforge.measure.videos import VideoCount, ask_video, count_video
from samforge.models.tiny.held_out_clips import labelled_videos
from samforge.workflows.inspect import inspect

CLAIM = "in 8 bits the tracker loses at most 0.01 J&F and makes at most 2 % more switches"
LIMITS = {"j_and_f_drop": 0.01, "switch_rise": 0.02}
"""At most: of J&F, by phrases and by clicks; of fp32's switches."""


def segmenter(bundle: Path) -> samforge.Segmenter:
    """What is measured, once a process: it has the bundles of one run and no others."""
    if bundle not in _loaded:
        # torch has one count of threads for the whole process: OMP_NUM_THREADS says it.
        target = target_from_name(samforge.open_bundle(bundle).manifest.target)
        _loaded[bundle] = samforge.load(bundle, threads=1 if target.through_onnx else None)
    return _loaded[bundle]


_loaded: dict[Path, samforge.Segmenter] = {}


def counts_of(number: int, bundles: tuple[Path, Path]) -> tuple[VideoCount, VideoCount]:
    """One clip, asked of both: what was counted of each, of the second against the first too."""
    (video,) = labelled_videos(1, first=number)
    reference, measured = (ask_video(segmenter(one).tracker_parts(), video) for one in bundles)
    return count_video(video, reference, None), count_video(video, measured, reference)


def counted(
    bundles: tuple[Path, Path], clips: int, processes: int
) -> tuple[list[VideoCount], list[VideoCount]]:
    """All clips, in processes of one thread each."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        asked = [pool.submit(counts_of, number, bundles) for number in range(clips)]
        for number, one in enumerate(asked, 1):
            one.result()
            print(f"{number} of {clips} clips", file=sys.stderr)
    reference, measured = zip(*(one.result() for one in asked), strict=True)
    return list(reference), list(measured)


def side(bundle: Path, accuracy: VideoAccuracy) -> dict[str, Any]:
    """One bundle: what it is, and its figures. Times of processes side by side are none."""
    opened = samforge.open_bundle(bundle)
    figures = asdict(accuracy)
    del figures["frame_ms"]
    return {
        "target": opened.manifest.target,
        "precision": opened.manifest.recipe["precision"],
        "bytes": sum(entry.bytes for entry in opened.manifest.files.values()),
        "in 8 bits": {name: asdict(one) for name, one in inspect(bundle).quantized.items()},
        "figures": figures,
    }


def main() -> int:
    """Measure, write the result, and fail when a limit does not hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("reference", type=Path, help="bundle with its tracker, in fp32")
    parser.add_argument("bundle", type=Path, help="the same in 8 bits")
    parser.add_argument("--clips", type=int, default=20, help="held-out clips of 32 frames")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--name", default="tracking_int8", help="of the result")
    options = parser.parse_args()
    both = (options.reference, options.bundle)
    reference, measured = counted(both, options.clips, options.processes)
    accuracy = accuracy_from_counts(measured, (reference, measured))
    fidelity = accuracy.fidelity
    assert fidelity is not None  # the second of two is compared with the first
    rise = (fidelity.switches - fidelity.reference_switches) / max(1, fidelity.reference_switches)
    holds = {
        **{
            f"J&F, {way}": drop <= LIMITS["j_and_f_drop"]
            for way, drop in fidelity.j_and_f_drop.items()
        },
        "switches": rise <= LIMITS["switch_rise"],
    }
    result = {
        "claim": CLAIM,
        "clips": options.clips,
        "limits": LIMITS,
        "reference": side(options.reference, accuracy_from_counts(reference, None)),
        "measured": side(options.bundle, accuracy),
        "switch_rise": round(rise, 5),
        "holds": holds,
    }
    written = write_result(f"{options.name}.py", result)
    print(json.dumps(holds, indent=2))
    print(f"-> {written.name}", file=sys.stderr)
    return 0 if all(holds.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
