"""What transformers' computation costs weights that Meta's code was trained with.

    python benchmarks/references.py                  # 1,000 held-out scenes
    python benchmarks/references.py --scenes 50 --folder DIR

The tiny model was trained as Meta trains. Both bundles are fp32 of the same weights; one computes
what Meta's code does, the other what transformers' Sam3Model does.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from _conditions import write_result
from _scenes import built, measured, workers

from samforge import Recipe
from samforge.core.reference import REFERENCES
from samforge.measure import SegmenterAccuracy

CLAIM = "what transformers computes of weights trained in Meta's order is less right"


def figures(accuracy: SegmenterAccuracy) -> dict[str, Any]:
    """What the page prints."""
    assert accuracy.cgf1 is not None
    assert accuracy.text is not None
    assert accuracy.boxes is not None
    found: dict[str, Any] = {
        "text_f1": round(accuracy.text.f1, 4),
        "mask_iou_with_the_truth": round(accuracy.text.mean_iou, 4),
        "presence": round(accuracy.text.presence, 4),
        "boxes_f1": round(accuracy.boxes.f1, 4),
        "cgf1": round(accuracy.cgf1.cgf1, 4),
    }
    if accuracy.fidelity is not None:
        one = accuracy.fidelity
        found |= {
            "pairs": one.pairs,
            "objects": one.objects,
            "reference_objects": one.reference_objects,
            "mask_iou_with_meta": None if one.mask_iou is None else round(one.mask_iou, 4),
            "score_shift_max": round(one.score_shift_max, 4),
        }
    return found


def main() -> int:
    """Measure, write the result, and fail when the claim does not hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="keep the bundles here, and use those there")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        bundles = {one: folder / f"tiny-{one}" for one in REFERENCES}
        with workers(options.processes) as pool:
            builds = [
                pool.submit(built, Recipe(reference=one), place) for one, place in bundles.items()
            ]
            for build in builds:
                build.result()
            found = measured(pool, bundles, options.scenes)
    rows = {one: figures(accuracy) for one, accuracy in found.items()}
    meta, stock = (rows[one]["mask_iou_with_the_truth"] for one in ("meta", "transformers"))
    result = {"claim": CLAIM, "scenes": options.scenes, "rows": rows, "holds": stock < meta}
    print(f"{rows}\n-> {write_result(__file__, result).name}")
    return 0 if stock < meta else 1


if __name__ == "__main__":
    sys.exit(main())
