"""Labelling beside the segmenter's own calls: blocks of the same files, in turns."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from _label_work import CLASSES, FORMATS, draw

import samforge
from samforge.labelling import (
    Engine,
    Labeller,
    LabelSettings,
    MakeEngine,
    Ontology,
    Opening,
    label,
    labelled,
)

BLOCK = 10
"""Pictures of a block: a few seconds, so that what disturbs the machine disturbs both sides."""


def rate(bundle: Path, work: Path, pictures: int, until: float) -> dict[str, Any]:
    """Time blocks until there are so many pictures, or the time is over."""
    ontology = Ontology.from_texts(CLASSES)
    blocks: list[dict[str, float]] = []
    with samforge.load(bundle) as segmenter:
        phrases, thresholds = list(ontology.phrases), list(ontology.phrases.values())
        segmenter.encode_phrases(phrases)
        warm = draw(work / "warm", 0, 2)
        segmenter.predict(warm, text=phrases, threshold=thresholds)
        for number in range(-(-pictures // BLOCK)):
            if blocks and time.monotonic() > until:
                break
            folder, out = work / f"block-{number}", work / f"block-{number}-out"
            files = draw(folder, number * BLOCK, min(BLOCK, pictures - number * BLOCK))
            times = {"pictures": float(len(files))}
            sides = [
                lambda files=files: _alone(segmenter, files, phrases, thresholds),
                lambda folder=folder, out=out: _labelled(segmenter, bundle, folder, out, ontology),
            ]
            for side in sides if number % 2 else reversed(sides):
                times |= side()
            blocks.append(times)
            print(number, {key: round(value, 2) for key, value in times.items()}, flush=True)
            shutil.rmtree(folder)
            shutil.rmtree(out)
    return {"phrases": len(phrases), **_told(blocks)}


def _alone(
    segmenter: samforge.Segmenter, files: list[Path], phrases: list[str], thresholds: list[float]
) -> dict[str, float]:
    start, cpu = time.perf_counter(), time.process_time()
    segmenter.predict(files, text=phrases, threshold=thresholds)
    return {
        "segmenter_s": time.perf_counter() - start,
        "segmenter_cpu_s": time.process_time() - cpu,
    }


def _labelled(
    segmenter: samforge.Segmenter, bundle: Path, folder: Path, out: Path, ontology: Ontology
) -> dict[str, float]:
    settings = LabelSettings(formats=FORMATS)
    engine = _engine_of(segmenter)
    start, cpu = time.perf_counter(), time.process_time()
    result = label(bundle, folder, ontology, out, settings=settings, engine=engine)
    whole = time.perf_counter() - start
    assert result.labelled == result.pictures > 0, result.failures
    return {
        "label_s": result.seconds,
        "label_and_write_s": whole,
        "label_and_write_cpu_s": time.process_time() - cpu,
    }


def _engine_of(segmenter: samforge.Segmenter) -> MakeEngine:
    """An engine with the segmenter that is there: both sides have the very same one."""

    def made(
        openings: Sequence[Opening], ontology: Ontology, stack: ExitStack
    ) -> tuple[Engine, str]:
        del openings, stack
        labeller = Labeller(segmenter, ontology)
        return lambda chunks: labelled(labeller, chunks), segmenter.processor

    return made


def _told(blocks: list[dict[str, float]]) -> dict[str, Any]:
    total = {key: round(sum(one[key] for one in blocks), 2) for key in blocks[0]}
    ratios = [one["segmenter_s"] / one["label_s"] for one in blocks]
    written = [one["segmenter_s"] / one["label_and_write_s"] for one in blocks]
    cpu = [one["segmenter_cpu_s"] / one["label_and_write_cpu_s"] for one in blocks]
    pictures = int(total.pop("pictures"))
    return {
        "pictures": pictures,
        "blocks": len(blocks),
        "totals": total,
        "pictures_a_second": round(pictures / total["label_s"], 3),
        "rate_ratio": round(total["segmenter_s"] / total["label_s"], 4),
        "rate_ratio_median_of_blocks": round(statistics.median(ratios), 4),
        "rate_ratio_with_listing_and_writing": round(statistics.median(written), 4),
        "processor_time_ratio_with_listing_and_writing": round(statistics.median(cpu), 4),
    }
