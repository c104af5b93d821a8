"""Bundles of the tiny model on held-out scenes: built side by side, measured side by side."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import samforge
from samforge import Recipe
from samforge.measure import SegmenterAccuracy, measure_segmenter
from samforge.measure.asking import Key
from samforge.measure.segmentation import AccuracyTally
from samforge.models import tiny

SHARE = 25
"""Scenes that a process asks at a time."""


def workers(processes: int) -> ProcessPoolExecutor:
    """New processes of one thread each: at this size two threads of a runtime gain nothing."""
    os.environ["OMP_NUM_THREADS"] = "1"
    return ProcessPoolExecutor(processes, mp_context=get_context("spawn"))


def built(recipe: Recipe, out: Path) -> None:
    """Build a bundle unless it is there."""
    if not out.exists():
        samforge.build(recipe, out=out)
    print(f"{out.name}: built", flush=True)


def measured(
    pool: Executor, bundles: Mapping[str, Path], scenes: int
) -> dict[str, SegmenterAccuracy]:
    """Ask every bundle every question of the scenes; the first says what is right for the rest."""
    starts = range(0, scenes, SHARE)
    shares = [pool.submit(_share, bundles, one, min(SHARE, scenes - one)) for one in starts]
    sums = {row: AccuracyTally() for row in bundles}
    for share in shares:
        for row, part in share.result().items():
            sums[row].images += part.images
            sums[row].answered += part.answered
    return {row: tally.accuracy() for row, tally in sums.items()}


def _share(bundles: Mapping[str, Path], first: int, count: int) -> dict[str, AccuracyTally]:
    """Some of the scenes; figures of all shares add up."""
    answers: dict[Key, samforge.Detections] = {}
    found: dict[str, AccuracyTally] = {}
    for row, path in bundles.items():
        bundle = samforge.open_bundle(path)
        # torch has one number of threads for the whole process.
        threads = None if bundle.manifest.target == "torch" else 1
        tally = AccuracyTally()
        measure_segmenter(
            samforge.load(bundle, threads=threads),
            tiny.labelled_scenes(count, first=first),
            record=None if found else answers,
            reference=answers if found else None,
            tally=tally,
        )
        # Times of processes side by side say nothing.
        found[row] = AccuracyTally(answered=tally.answered, images=tally.images)
    print(f"scenes {first} to {first + count - 1}: {', '.join(bundles)}", flush=True)
    return found
