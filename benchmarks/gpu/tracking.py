"""Clicks and tracks of a whole bundle of the tiny model on a GPU, and on the host.

    python benchmarks/gpu/tracking.py --out FILE [--precision bf16] [--jobs 8] [--bundle DIR]

The build holds clicks and tracks to fp32's (step ``follow``). Here what ``samforge.load`` gives,
with features and memories on the GPU, has to find what the same sessions find when arrays of the
host go in and out. Frames are of 224 x 224 pixels and the network is tiny: their times tell the
cost of launches and of the rules, not that of SAM 3.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _timing import Results
from bundle import through_the_host

import samforge
import samforge.runtime.device  # before loading is timed
from samforge.core.images import RgbImage
from samforge.measure.tracker_fidelity import compare_clicks, compare_clips
from samforge.models.tiny import draw_crossing, draw_scene
from samforge.runtime import ObjectPrompt, Segmenter
from samforge.runtime.tracking import PromptAt

CLIPS, FRAMES = 4, 24
OBJECTS = (1, 8, 32)
LEAST = {"click_iou": 0.999, "track_iou": 0.99}
"""Both ways run the same programs; products of other sizes are summed in another order."""


def grid_of_clicks(count: int, side: int = 224) -> list[ObjectPrompt]:
    """Clicks on a regular grid: as many objects as wanted, whatever lies there."""
    across = -(-count // max(1, int(count**0.5)))
    rows = -(-count // across)
    places = [
        ((column + 0.5) * side / across, (row + 0.5) * side / rows)
        for row in range(rows)
        for column in range(across)
    ]
    return [ObjectPrompt(points=[place]) for place in places[:count]]


def tracks(segmenter: Segmenter, clip: Sequence[RgbImage], phrases: Sequence[str]) -> list[Any]:
    """Objects of phrases, frame by frame."""
    return [frame.detections for frame in segmenter.track_video(clip, text=list(phrases))]


def compare(device: Segmenter, host: Segmenter, results: Results) -> bool:
    """Ask both the same."""
    scenes = [draw_scene(number, split="demo").image for number in range(CLIPS)]
    prompts = grid_of_clicks(9)
    clicks = compare_clicks(
        [host.predict_objects(scene, prompts) for scene in scenes],
        [device.predict_objects(scene, prompts) for scene in scenes],
    )
    results.add("clicks, mean IoU with the host's", clicks.click_iou)
    both: list[list[list[Any]]] = [[], []]
    for seed in range(CLIPS):
        clip = list(draw_crossing(seed, frames=FRAMES, split="demo"))
        first = clip[0]
        named = dict.fromkeys(
            f"{colour} {shape}" for colour, shape in zip(first.colours, first.shapes, strict=True)
        )
        frames = [scene.image for scene in clip]
        for side, segmenter in zip(both, (host, device), strict=True):
            side.append(tracks(segmenter, frames, tuple(named)))
    found = compare_clips(*both)
    results.add("tracks", found.tracks)
    results.add("tracks of the device", found.measured_tracks)
    results.add("smallest temporal IoU with the host's", found.track_iou)
    return clicks.click_iou >= LEAST["click_iou"] and found.track_iou >= LEAST["track_iou"]


def paces(device: Segmenter, results: Results) -> None:
    """Frames a second with some numbers of objects, behind the frames in which memories fill."""
    clip = [scene.image for scene in draw_crossing(0, frames=FRAMES, split="demo")]
    for count in OBJECTS:
        shown = [PromptAt(frame=0, prompt=one) for one in grid_of_clicks(count)]
        moments = [time.perf_counter() for _ in device.track_video(clip, prompts=shown)]
        spent = (moments[-1] - moments[9]) / (len(moments) - 10)
        results.add(f"{count} objects, ms a frame", round(1e3 * spent, 2))


def main() -> int:
    """Build unless the bundle is there; 1 where the two ways differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--precision", default="bf16", choices=("bf16", "fp16", "fp8"))
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument(
        "--bundle", type=Path, help="one that was built before; else it is built there"
    )
    options = parser.parse_args()
    results = Results(options.out, 600)
    with tempfile.TemporaryDirectory() as folder:
        bundle = options.bundle or Path(folder) / "tracked"
        if not (bundle / "manifest.json").exists():
            build = [sys.executable, "-m", "samforge.apps.cli", "build", "tiny", "--tracker"]
            build += ["--target", "inductor", "--precision", options.precision]
            start = time.perf_counter()
            subprocess.run([*build, "--jobs", str(options.jobs), "--out", str(bundle)], check=True)
            results.add("build s", round(time.perf_counter() - start, 1))
        manifest = samforge.open_bundle(bundle).manifest
        (follow,) = [step for step in manifest.steps if step.name == "follow"]
        results.add("held to fp32", [dict(row) for row in follow.fidelity])
        device = samforge.load(bundle)
        results.add("way", device.processor)
        alike = compare(device, through_the_host(bundle), results)
        paces(device, results)
    return int(not alike)


if __name__ == "__main__":
    sys.exit(main())
