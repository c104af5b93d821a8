"""A whole bundle of the tiny model on a GPU: build it, open it in a new process, run it both ways.

    python benchmarks/gpu/bundle.py --out FILE [--precision bf16] [--bundle DIR]

What ``samforge.load`` gives, with everything on the GPU, has to find what the same sessions find
when arrays of the host go in and out: one by one, as a batch and as a stream. ``samforge verify``
has to hold. Loading is timed in a process that has imported all and compiled nothing.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from _timing import Results, synchronize

import samforge
import samforge.backends.inductor.backend
import samforge.runtime.device  # before loading is timed
from samforge.assembly import session_from_bundle, tokenizer_from_bundle
from samforge.models.tiny.scenes import draw_scene
from samforge.runtime import Segmenter
from samforge.runtime.host import HostExecutor

PHRASES = ("red circle", "star", "blue object")
SCENES = 4
MOST = 1e-4
"""Of the pixels, may differ: products of other sizes are summed in another order."""


def open_and_run(bundle: Path, results: Results) -> None:
    """Time two openings, then compare what both runtimes find."""
    torch.zeros(1, device="cuda" if torch.cuda.is_available() else "cpu")
    segmenters: list[Any] = []
    for words in ("first", "second"):
        seconds, segmenter = timed(lambda: samforge.load(bundle))
        results.add(f"load, {words} of the process, s", round(seconds, 3))
        segmenters.append(segmenter)
    device, host = segmenters[0], through_the_host(bundle)
    results.add("way", device.processor)
    images = [draw_scene(index, split="demo").image for index in range(SCENES)]
    wanted = host.predict(images, text=PHRASES)
    results.add("objects", sum(map(len, wanted)))
    seconds, _ = timed(lambda: device.predict(images[0], text=PHRASES))
    results.add("first predict, s", round(seconds, 3))
    ways = {
        "one by one": lambda: [device.predict(image, text=PHRASES) for image in images],
        "as a batch": lambda: device.predict(images, text=PHRASES),
        "as a stream": lambda: list(device.stream(images, text=PHRASES)),
        "as a stream of pairs": lambda: list(device.stream(images, text=PHRASES, batch=2)),
    }
    box = wanted[0].boxes_xyxy[:1]
    alike = host.predict(images[0], boxes_xyxy=box)
    for _ in range(3):
        found = device.predict(images[0], boxes_xyxy=box)
    results.add("by a box, share of pixels that differ", differing([found], [alike]))
    for words, way in ways.items():
        for _ in range(3):  # the last with masks begun ahead
            found = way()
        results.add(f"{words}, share of pixels that differ", differing(found, wanted))


def through_the_host(root: Path) -> Segmenter:
    """A segmenter over the same sessions that copies everything between them."""
    bundle = samforge.open_bundle(root)
    manifest = bundle.manifest
    sessions = {name: session_from_bundle(bundle, name) for name in manifest.parts}
    executor = HostExecutor(
        sessions,
        manifest.image,
        tokenizer_from_bundle(bundle),
        samforge.read_image,
        reference=manifest.reference,
    )
    return Segmenter(executor, image_size=manifest.image.size, parts=sessions)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of one call, everything finished, and what it gave."""
    start = time.perf_counter()
    result = call()
    synchronize()
    return time.perf_counter() - start, result


def differing(found: Iterable[Any], wanted: Iterable[Any]) -> float | str:
    """Share of all masks' pixels, or what is different before pixels can be compared."""
    different = total = 0
    for one, other in zip(found, wanted, strict=True):
        if one.labels != other.labels:
            return f"found {one.labels} instead of {other.labels}"
        different += int((one.masks.dense() != other.masks.dense()).sum())
        total += math.prod(other.masks.shape)
    return different / total


def main() -> int:
    """Build unless a bundle is given; 1 where the two runtimes differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--precision", default="bf16", choices=("bf16", "fp16", "fp8"))
    parser.add_argument("--bundle", type=Path, help="one that was built before")
    options = parser.parse_args()
    results = Results(options.out, 600)
    with tempfile.TemporaryDirectory() as folder:
        bundle = options.bundle or Path(folder) / "tiny"
        if options.bundle is None:
            build = [sys.executable, "-m", "samforge.apps.cli", "build", "tiny"]
            build += ["--target", "inductor", "--precision", options.precision]
            start = time.perf_counter()
            subprocess.run([*build, "--out", str(bundle)], check=True)
            results.add("build s", round(time.perf_counter() - start, 1))
        open_and_run(bundle, results)
        found = samforge.verify(bundle)
        results.add("verified on", found.processor)
        results.add("gates", {gate: list(pair) for gate, pair in found.gates.items()})
    differ = [value for words, value in results.values["figures"].items() if "differ" in words]
    return int(any(isinstance(value, str) or value > MOST for value in differ))


if __name__ == "__main__":
    sys.exit(main())
