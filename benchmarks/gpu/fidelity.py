"""What each number format costs the tiny model, trained and stressed, on a processor.

    python benchmarks/gpu/fidelity.py --out FILE [--scenes 16]

Lowered programs run operator by operator, against the exported float32 parts, through the same
device segmenter. The kernels of a GPU are held to the same meaning by tests.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _parts import CompiledPart, family_inputs, segmenter_over
from _timing import Results

from samforge.measure.predictions import compare_detections, fidelity_from_answers
from samforge.models.sam3.loading import checkpoint_from_name
from samforge.models.sam3.parts import part_from_checkpoint
from samforge.models.tiny.scenes import draw_scene
from samforge.models.tiny.stress import StressedSource
from samforge.runtime import PhraseTokenizer
from samforge.runtime.device import Resizer
from samforge.transform.export import TRACED_SIZES, exported_from_part
from samforge.transform.fuse import fuse
from samforge.transform.lower import Lowering, fp8_scales_from_samples, lower

PHRASES = ("red circle", "blue object", "star", "green square")
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


def main() -> None:
    """Compare every format on the same scenes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=16)
    parser.add_argument("--models", default="tiny,stressed")
    parser.add_argument("--formats", default=";".join(FORMATS), help="with ; between them")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare(options, Path(folder))


def compare(options: argparse.Namespace, folder: Path) -> None:
    """The same, with a folder for exported programs."""
    results = Results(options.out, 3600)
    chosen = options.models.split(",")
    for model, checkpoint in checkpoints().items():
        if model not in chosen:
            continue
        programs, scales = {}, {}
        resize = Resizer(checkpoint.image, torch.device("cpu"))
        calibration = [
            {
                "images": resize(torch.from_numpy(draw_scene(index, split="train").image.copy()))[
                    None
                ]
            }
            for index in range(8)
        ]
        for name in ("vision", "text", "detector"):
            part = part_from_checkpoint(checkpoint, name)
            inputs = family_inputs(checkpoint, part.spec, dict(TRACED_SIZES), 0)
            program = fuse(exported_from_part(part, inputs), target="inductor").program
            path = folder / f"{model}-{name}.pt2"
            torch.export.save(program, path)
            programs[name] = (part.spec, lambda path=path: torch.export.load(path))
            if name == "vision":
                scales = fp8_scales_from_samples(program, part.spec, calibration)
        scenes = [draw_scene(index, split="demo").image for index in range(options.scenes)]
        reference = segmenter(checkpoint, programs, None)
        wanted = [reference.predict(scene, text=[p]) for scene in scenes for p in PHRASES]
        for words in options.formats.split(";"):
            changes = FORMATS[words]
            with results.section(f"{model} {words}") as go:
                if not go:
                    continue
                found = segmenter(checkpoint, programs, Lowering(scales=scales, **changes))
                answers = [found.predict(scene, text=[p]) for scene in scenes for p in PHRASES]
                figures = fidelity_from_answers(map(compare_detections, wanted, answers))
                results.add(f"{model} {words}", figures.to_dict())


if __name__ == "__main__":
    main()
