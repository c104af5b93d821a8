"""What INT8 keeps of the tiny model with outliers of many kinds, planted without changing it.

    python benchmarks/outliers.py                        # all kinds, 100 held-out scenes
    python benchmarks/outliers.py --kinds neck values+relu-mlps --scenes 20
    python benchmarks/outliers.py --precision fp8

Every kind (``samforge.models.tiny.planted``) is exported, fused and calibrated as a build does it.
Q/DQ is simulated in PyTorch with every group in 8 bits: nothing is kept in half to save a kind. The
answers of the unplanted model in fp32 are what all are held against.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _conditions import conditions
from torch import Tensor
from torch.export import ExportedProgram

from samforge.core.detections import Detections
from samforge.core.recipe import Quantization
from samforge.core.session import Array, PartSpec, Session, Tensors
from samforge.core.timing import Timings
from samforge.measure import SegmenterAccuracy, measure_segmenter
from samforge.measure.asking import ask
from samforge.media import read_image
from samforge.models import tiny
from samforge.models.loading import model_from_name
from samforge.models.sam3.family import Sam3
from samforge.models.tiny.planted import KINDS, PlantedSource
from samforge.runtime import PhraseTokenizer, Segmenter, segmenter_from_sessions
from samforge.transform.export import TRACED_SIZES, exported_from_part
from samforge.transform.fuse import fuse
from samforge.transform.quantize import Calibrated, CalibrationWarning, calibrate
from samforge.transform.quantize.simulate import Simulation

CLAIM = "INT8 keeps what fp32 finds, with outliers of many kinds planted"
PARTS = ("vision", "text", "detector")
SAMPLES = 16
"""Scenes of the training split that set the ranges, as in a build."""
UNPLANTED = "none"
STRESSED = "stressed"
"""LayerNorm channels: the built-in model ``tiny-stressed``."""
TOGETHER = ("vision-heads+relu-mlps", "values+norm-biases")
"""Kinds that are planted at once."""
ROWS = (UNPLANTED, STRESSED, *KINDS, *TOGETHER)
FLOORS = {"cgf1_drop": 0.01, "mask_iou": 0.98, "agreement": 0.95}
"""The default gates."""
UNCHANGED = 1e-3
"""Largest relative difference of a part's outputs in float32 that rounding explains: weights are
multiplied by up to 200 and divided again, by no powers of two, before seven layers."""


@dataclass(kw_only=True, slots=True)
class Part:
    """A part that runs in float, in 8 bits, and remembers what it was fed."""

    spec: PartSpec
    """Its interface."""
    program: ExportedProgram
    """Fused, in float."""
    module: Any
    """The program as a function."""
    fed: list[dict[str, Tensor]]
    """Inputs so far, while it records."""
    simulation: Simulation | None = None
    """Runs it in 8 bits, once it is calibrated."""
    nodes: frozenset[str] = frozenset()
    """What runs in 8 bits."""
    recording: bool = False
    """Whether inputs are kept."""
    runtime: str = "simulation"
    """Named as sessions are."""
    processor: str = "CPU"
    """Where it runs."""

    def run(self, tensors: Tensors) -> dict[str, Array]:
        """Run the part once."""
        sample = {
            tensor.name: torch.from_numpy(np.ascontiguousarray(tensors[tensor.name]))
            for tensor in self.spec.inputs
        }
        if self.recording:
            self.fed.append(sample)
        with torch.inference_mode():
            if self.simulation is None:
                results = self.module(*sample.values())
                results = (results,) if isinstance(results, Tensor) else tuple(results)
            else:
                results = self.simulation.outputs(sample, self.nodes)[1]
        return {
            tensor.name: result.numpy()
            for tensor, result in zip(self.spec.outputs, results, strict=True)
        }

    def close(self) -> None:
        """Nothing is held."""


def model_of(row: str) -> Sam3:
    """The tiny model with what a row plants."""
    model = model_from_name("tiny-stressed" if row == STRESSED else "tiny")
    assert isinstance(model, Sam3)
    if row in (UNPLANTED, STRESSED):
        return model
    own = model.checkpoint
    return Sam3(replace(own, source=PlantedSource(own.source, row.split("+"))))


def parts_of(model: Sam3) -> dict[str, Part]:
    """Export and fuse what phrases need."""
    found = {}
    for name in PARTS:
        exported = exported_from_part(model.part(name), model.inputs(name, TRACED_SIZES, seed=0))
        program = fuse(exported, target="onnxruntime").program
        module = program.module(check_guards=False)
        found[name] = Part(spec=model.spec(name), program=program, module=module, fed=[])
    return found


def segmenter_of(model: Sam3, parts: dict[str, Part]) -> Segmenter:
    """A segmenter over them."""
    text = model.text
    tokenizer = PhraseTokenizer(tiny.TOKENIZER_PATH, text.context, text.eos_id)
    sessions: dict[str, Session] = dict(parts)
    return segmenter_from_sessions(sessions, model.image, tokenizer, read_image)


def calibrated_parts(model: Sam3, parts: dict[str, Part], precision: str) -> dict[str, Calibrated]:
    """Set the ranges on training scenes, then run in 8 bits."""
    for part in parts.values():
        part.recording = True
    scenes = tiny.labelled_scenes(SAMPLES, split="train")
    for _ in ask(segmenter_of(model, parts), scenes, timings=Timings(), boxes=False):
        pass
    calibrated = {}
    for name, part in parts.items():
        part.recording = False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CalibrationWarning)
            calibrated[name] = calibrate(
                part.program, lambda part=part: iter(part.fed), part=name, settings=Quantization()
            )
        part.simulation = Simulation(calibrated[name], precision=precision)
        part.nodes = frozenset(site.node for site in calibrated[name].sites)
    return calibrated


def float_difference(parts: dict[str, Part], plain: dict[str, list[dict[str, Tensor]]]) -> float:
    """Largest relative difference to the unplanted model's features, over calibration's scenes."""
    worst = 0.0
    for one, other in zip(parts["detector"].fed, plain["detector"], strict=True):
        # What two parts share may be changed on both sides: the finest map is.
        for name in one.keys() - {"fpn_0"}:
            exact = other[name].double()
            difference = (one[name].double() - exact).abs().max()
            worst = max(worst, float(difference / exact.abs().max().clamp(min=1e-9)))
    return worst


def measured_rows(rows: list[str], scenes: int, precision: str) -> Iterator[tuple[str, Any]]:
    """Figures of every row, the unplanted model in fp32 first."""
    answers: dict[tuple[int, int], Detections] = {}
    model = model_of(UNPLANTED)
    parts = parts_of(model)
    exact = measure_segmenter(
        segmenter_of(model, parts), tiny.labelled_scenes(scenes), boxes=False, record=answers
    )
    assert exact.cgf1 is not None
    yield "fp32", {"cgf1": round(exact.cgf1.cgf1, 5)}
    calibrated_parts(model, parts, precision)
    plain = {name: part.fed for name, part in parts.items()}
    for row in rows:
        model = model_of(row)
        parts = parts_of(model)
        start = time.perf_counter()
        calibrated = calibrated_parts(model, parts, precision)
        seconds = time.perf_counter() - start
        found = measure_segmenter(
            segmenter_of(model, parts),
            tiny.labelled_scenes(scenes),
            boxes=False,
            reference=answers,
        )
        difference = float_difference(parts, plain)
        yield (
            row,
            {
                **_figures(exact, found),
                "float_difference": float(f"{difference:.2g}"),
                "evened_out": sum(len(one.smoothings) for one in calibrated.values()),
                "calibration_s": round(seconds, 1),
            },
        )


def _figures(exact: SegmenterAccuracy, found: SegmenterAccuracy) -> dict[str, Any]:
    assert exact.cgf1 is not None
    assert found.cgf1 is not None
    assert found.fidelity is not None
    one = found.fidelity
    return {
        "cgf1_drop": round(exact.cgf1.cgf1 - found.cgf1.cgf1, 5),
        "mask_iou": None if one.mask_iou is None else round(one.mask_iou, 5),
        "agreement": None if one.agreement is None else round(one.agreement, 5),
        "pairs": one.pairs,
        "objects": one.objects,
        "reference_objects": one.reference_objects,
    }


def holds(figures: dict[str, Any]) -> bool:
    """Whether a row keeps the default gates, and its float function is unchanged."""
    return (
        figures["cgf1_drop"] <= FLOORS["cgf1_drop"]
        and (figures["mask_iou"] or 0.0) >= FLOORS["mask_iou"]
        and (figures["agreement"] or 0.0) >= FLOORS["agreement"]
        and figures["float_difference"] <= UNCHANGED
    )


def write(path: Path, key: str, rows: dict[str, Any], scenes: int) -> None:
    """Put rows into the result beside those that are there."""
    result = json.loads(path.read_text()) if path.exists() else {"claim": CLAIM, "floors": FLOORS}
    kept = result.get(key, {})
    named = {**kept.get("rows", {}), **rows}
    result[key] = {**conditions(), "scenes": scenes, "rows": named}
    result[key]["holds"] = {row: holds(named[row]) for row in named if row != "fp32"}
    path.write_text(json.dumps(result, indent=2) + "\n")


def main() -> int:
    """Measure, write the result, and fail when a kind does not hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--kinds", nargs="+", default=list(ROWS), help="+ plants several at once")
    parser.add_argument("--precision", choices=("int8", "fp8"), default="int8")
    parser.add_argument("--key", help="where in the result; the precision unless given")
    results = Path(__file__).parent / "results" / "outliers.json"
    parser.add_argument("--result", type=Path, default=results)
    options = parser.parse_args()
    torch.set_num_threads(1)  # at this size a second thread gains nothing
    rows: dict[str, Any] = {}
    for row, figures in measured_rows(options.kinds, options.scenes, options.precision):
        rows[row] = figures
        print(f"{row}: {json.dumps(figures)}", flush=True)
        write(options.result, options.key or options.precision, rows, options.scenes)
    return 0 if all(holds(rows[row]) for row in rows if row != "fp32") else 1


if __name__ == "__main__":
    sys.exit(main())
