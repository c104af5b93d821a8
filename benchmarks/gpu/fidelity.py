"""What each number format costs the tiny model, trained and stressed, on a processor.

    python benchmarks/gpu/fidelity.py --out FILE [--scenes 16] [--jobs 6]

Lowered programs run operator by operator, against the exported float32 parts, through the same
device segmenter. The kernels of a GPU are held to the same meaning by tests. With ``--jobs``,
formats are measured side by side, in processes that share the cores.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from _parts import CompiledPart, family_inputs, segmenter_over
from _timing import Results

from samforge.core.detections import Detections
from samforge.core.session import PartSpec
from samforge.measure.predictions import compare_detections, fidelity_from_answers
from samforge.models.sam3.loading import checkpoint_from_name
from samforge.models.sam3.parts import part_from_checkpoint
from samforge.models.tiny.scenes import draw_scene
from samforge.models.tiny.stress import StressedSource
from samforge.runtime import PhraseTokenizer, Segmenter
from samforge.runtime.device import Resizer
from samforge.transform.export import TRACED_SIZES, exported_from_part
from samforge.transform.fuse import fuse
from samforge.transform.lower import Lowering, fp8_scales_from_samples, lower

PHRASES = ("red circle", "blue object", "star", "green square")
CALIBRATION = 8
"""Pictures from which fp8 has its scales."""
GPU = {"residual": "half", "attention": "triton", "sums": "joined"}
"""As ``Lowering.for_gpu``, but for cuDNN, which no processor has."""
FORMATS: dict[str, dict[str, Any]] = {
    "fp8, as for a GPU": {"precision": "fp8", **GPU},
    "bf16, as for a GPU": {"precision": "bf16", **GPU},
    "fp8, half residual": {"precision": "fp8", "residual": "half"},
    "bf16": {"precision": "bf16"},
    "fp8": {"precision": "fp8"},
    "fp8, one scale a weight": {"precision": "fp8", "weight_scales": "tensor"},
    "bf16, half residual": {"precision": "bf16", "residual": "half"},
    "fp16": {"precision": "fp16"},
    "fp32, fast GELU": {"precision": "fp32"},
}


def checkpoints() -> dict[str, Any]:
    """The tiny model, and the same function with outlier channels."""
    plain = checkpoint_from_name("tiny")
    return {"tiny": plain, "stressed": replace(plain, source=StressedSource(plain.source))}


def segmenter(checkpoint: Any, programs: dict[str, Any], settings: Lowering | None) -> Any:
    """A device segmenter over lowered programs, or over the exported ones."""
    parts = {}
    for name, (spec, program) in programs.items():
        chosen = settings or Lowering(precision="fp32", gelu="exact")
        lowered = lower(program(), spec, settings=chosen)
        parts[name] = CompiledPart(lowered, spec, {"eager": True})
    tokenizer = PhraseTokenizer(checkpoint.tokenizer, checkpoint.context, 0)
    return segmenter_over(parts, checkpoint, tokenizer)


def answers(found: Segmenter, scenes: Sequence[Any]) -> list[Detections]:
    """Every phrase asked of every scene."""
    encoded = map(found.encode, scenes)
    return [found.predict(one, text=[phrase]) for one in encoded for phrase in PHRASES]


class Measured:
    """One of the models: its exported parts and what float32 answers, made once."""

    def __init__(self, model: str, scenes: int, folder: Path) -> None:
        self.checkpoint = checkpoints()[model]
        self.programs: dict[str, tuple[PartSpec, Callable[[], Any]]] = {}
        self.scales: dict[str, Any] = {}
        resize = Resizer(self.checkpoint.image, torch.device("cpu"))
        drawn = (draw_scene(index, split="train").image.copy() for index in range(CALIBRATION))
        calibration = [{"images": resize(torch.from_numpy(image))[None]} for image in drawn]
        for name in ("vision", "text", "detector"):
            part = part_from_checkpoint(self.checkpoint, name)
            inputs = family_inputs(self.checkpoint, part.spec, dict(TRACED_SIZES), 0)
            program = fuse(exported_from_part(part, inputs), target="inductor").program
            path = folder / f"{model}-{name}.pt2"
            torch.export.save(program, path)
            self.programs[name] = (part.spec, lambda path=path: torch.export.load(path))
            if name == "vision":
                self.scales = fp8_scales_from_samples(program, part.spec, calibration)
        self.scenes = [draw_scene(index, split="demo").image for index in range(scenes)]
        self.wanted = answers(segmenter(self.checkpoint, self.programs, None), self.scenes)

    def figures(self, words: str) -> dict[str, Any]:
        """What one format costs."""
        settings = Lowering(scales=self.scales, **FORMATS[words])
        found = answers(segmenter(self.checkpoint, self.programs, settings), self.scenes)
        return fidelity_from_answers(map(compare_detections, self.wanted, found)).to_dict()


def measured(
    model: str, formats: Sequence[str], scenes: int, threads: int
) -> list[tuple[str, dict[str, Any] | str]]:
    """Rows of one model: figures, or why there are none."""
    torch.set_num_threads(threads)
    rows: list[tuple[str, dict[str, Any] | str]] = []
    with tempfile.TemporaryDirectory() as folder:
        own = Measured(model, scenes, Path(folder))
        for words in formats:
            try:
                rows.append((f"{model} {words}", own.figures(words)))
            except Exception as error:  # noqa: BLE001  # the other formats have their figures
                rows.append((f"{model} {words}", repr(error)))
    return rows


def main() -> None:
    """Compare every format on the same scenes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=16)
    parser.add_argument("--models", default="tiny,stressed")
    parser.add_argument("--formats", default=";".join(FORMATS), help="with ; between them")
    parser.add_argument("--jobs", type=int, default=1, help="processes for each of the models")
    options = parser.parse_args()
    results = Results(options.out, 3600)
    models, formats = options.models.split(","), options.formats.split(";")
    shares = [formats[number :: options.jobs] for number in range(options.jobs)]
    asked = [(model, share) for model, share in product(models, shares) if share]
    threads = max(1, (os.cpu_count() or 1) // len(asked))
    with ProcessPoolExecutor(len(asked), mp_context=get_context("spawn")) as pool:
        running = [pool.submit(measured, *one, options.scenes, threads) for one in asked]
        for done in as_completed(running):
            for name, row in done.result():
                if isinstance(row, str):
                    results.fail(name, row)
                else:
                    results.add(name, row)


if __name__ == "__main__":
    main()
