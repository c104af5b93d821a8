"""What INT8 and FP8 keep of what fp32 finds: the tiny model, and the one with outlier channels.

    python benchmarks/floors.py                      # 1,000 held-out scenes
    python benchmarks/floors.py --scenes 50 --folder DIR
    python benchmarks/floors.py --rows int8          # fp32 and this one again, the rest as kept:
                                                     # of other weights nothing is kept
    python benchmarks/floors.py --processes 16       # on a machine of 16 cores

Every row is a bundle of its own, built by the whole pipeline. "naive" is min-max calibration with
no smoothing and no layer kept: its gates are opened, so that what it loses can be counted. The
phrases and boxes asked of each scene are those of ``samforge compare --data scenes:N``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _conditions import conditions, write_result
from _scenes import built, measured, workers

import samforge
from samforge import Bundle, Gates, Recipe
from samforge.core.recipe import Quantization
from samforge.measure import SegmenterAccuracy

CLAIM = "INT8 and FP8 keep what fp32 finds; naive INT8 of outlier channels does not"
MODELS = ("tiny", "tiny-stressed")
NAIVE = Quantization(observer="min-max", smooth=False, mixed=False)
OPEN = Gates(
    **dict.fromkeys(("mask_iou", "agreement", "box_iou", "cgf1_alike"), 0.0),
    **dict.fromkeys(("feature_cosine", "odd_cosine"), -1.0),
    **dict.fromkeys(("score_shift", "absent_score_shift", "cgf1_drop"), 1.0),
    **dict.fromkeys(("logit_shift", "presence_shift", "odd_logit_shift", "channel_gain"), 1e9),
    weak_evidence=True,
)
ROWS: dict[str, dict[str, Any]] = {
    "fp32": {"target": "onnxruntime", "precision": "fp32"},
    "int8": {"target": "onnxruntime", "precision": "int8"},
    "fp8": {"target": "torch", "precision": "fp8"},
    "naive int8": {
        "target": "onnxruntime",
        "precision": "int8",
        "quantization": NAIVE,
        "gates": OPEN,
    },
}
"""What differs between the bundles of one model; the first is what the others are held against."""
FLOORS = {"cgf1_drop": 0.01, "mask_iou": 0.98}
"""What the default recipes must keep."""
COLLAPSED = 0.5
"""Naive INT8 of the stressed model must lose at least this share of the objects."""


def measured_rows(
    folder: Path, scenes: int, names: Sequence[str], processes: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """Build every row of every model and measure it, fp32 first."""
    places = {
        model: {row: folder / f"{model}-{row.replace(' ', '-')}" for row in ("fp32", *names)}
        for model in MODELS
    }
    with workers(processes) as pool:
        builds = [
            pool.submit(built, Recipe(model=model, **ROWS[row]), place)
            for model, rows in places.items()
            for row, place in rows.items()
        ]
        for build in builds:
            build.result()
        found = {model: measured(pool, rows, scenes) for model, rows in places.items()}
    return {
        model: {
            row: _figures(samforge.open_bundle(places[model][row]), one, rows["fp32"])
            for row, one in rows.items()
        }
        for model, rows in found.items()
    }


def claims(rows: dict[str, dict[str, dict[str, Any]]]) -> dict[str, bool]:
    """Whether each floor holds, of the rows that there are."""
    found: dict[str, bool] = {}
    for model in MODELS:
        for row in {"int8", "fp8"} & rows[model].keys():
            figures = rows[model][row]
            found[f"{model} {row}: cgF1 drop"] = figures["cgf1_drop"] <= FLOORS["cgf1_drop"]
            found[f"{model} {row}: mask IoU"] = figures["mask_iou"] >= FLOORS["mask_iou"]
    naive = rows["tiny-stressed"].get("naive int8")
    if naive is None:
        return found
    lost = 1 - naive["pairs"] / naive["reference_objects"]
    found["tiny-stressed: naive int8 collapses"] = lost >= COLLAPSED
    return found


def renew(
    rows: dict[str, dict[str, dict[str, Any]]], names: Sequence[str]
) -> tuple[Path, dict[str, bool]]:
    """Put rows in the place of those that are kept, with the conditions they were measured in."""
    path = Path(__file__).parent / "results" / "floors.json"
    result = json.loads(path.read_text())
    kept = result["rows"]
    if any(rows[model]["fp32"]["cgf1"] != kept[model]["fp32"]["cgf1"] for model in rows):
        return written(rows, result["scenes"])
    for model, figures in rows.items():
        kept[model] |= {name: figures[name] for name in names}
    result["holds"] = claims(kept)
    # Conditions of rows that are measured again now speak of nothing any more.
    before = [
        {**one, "rows": [name for name in one["rows"] if name not in names]}
        for one in result.get("renewed", [])
    ]
    result["renewed"] = [one for one in before if one["rows"]]
    result["renewed"].append({**conditions(), "rows": list(names)})
    path.write_text(json.dumps(result, indent=2) + "\n")
    return path, result["holds"]


def written(
    rows: dict[str, dict[str, dict[str, Any]]], scenes: int
) -> tuple[Path, dict[str, bool]]:
    """Write the rows of one run, and whether they hold."""
    holds = claims(rows)
    result = {"claim": CLAIM, "scenes": scenes, "rows": rows, "floors": FLOORS, "holds": holds}
    return write_result(__file__, result), holds


def _figures(
    bundle: Bundle, accuracy: SegmenterAccuracy, exact: SegmenterAccuracy
) -> dict[str, Any]:
    assert accuracy.cgf1 is not None
    assert accuracy.text is not None
    assert exact.cgf1 is not None
    figures: dict[str, Any] = {
        "target": bundle.manifest.target,
        "precision": bundle.manifest.recipe["precision"],
        "bytes": sum(file.bytes for file in bundle.manifest.files.values()),
        "parts_bytes": sum(
            bundle.manifest.files[file].bytes
            for part in bundle.manifest.parts.values()
            for file in (part.artifact, *part.side_files)
        ),
        "cgf1": round(accuracy.cgf1.cgf1, 5),
        "text_f1": round(accuracy.text.f1, 5),
    }
    if accuracy.fidelity is not None:
        one = accuracy.fidelity
        figures |= {
            "cgf1_drop": round(exact.cgf1.cgf1 - accuracy.cgf1.cgf1, 5),
            "mask_iou": None if one.mask_iou is None else round(one.mask_iou, 5),
            "agreement": None if one.agreement is None else round(one.agreement, 5),
            "pairs": one.pairs,
            "objects": one.objects,
            "reference_objects": one.reference_objects,
        }
    return figures


def main() -> int:
    """Measure, write the result, and fail when a floor does not hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="keep the bundles here, and use those there")
    parser.add_argument("--rows", nargs="+", choices=tuple(ROWS)[1:], help="measure these alone")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    names = options.rows or tuple(ROWS)[1:]
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        rows = measured_rows(folder, options.scenes, names, options.processes)
    if options.rows:
        path, holds = renew(rows, options.rows)
    else:
        path, holds = written(rows, options.scenes)
    print(json.dumps(holds, indent=2))
    print(f"-> {path.name}")
    return 0 if all(holds.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
