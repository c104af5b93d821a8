"""Each object once: drawn rasters of 100 and 400 megapixels, cut into windows and put together.

    python benchmarks/rasters.py seams [--megapixels 100 400]
    python benchmarks/rasters.py model BUNDLE [--megapixels 100 400]

``seams`` has an oracle instead of a model: it reads the drawn shapes from the window's pixels, so
that what is wrong in the end is the seams' fault alone. Its masks go through cells of 4 pixels that
begin with the window, as a model's do, and it overlooks what shows less than a tenth of a shape.
``model`` has a bundle of the tiny model: its own errors count, too.

Segmenting runs in a process of its own, whose memory is read. The usual methods - pasting, NMS, no
joining - get the very same pieces. Fails where the limits do not hold. With ``--folder`` a run that
was stopped goes on: ``resumed`` counts windows that were taken over, and ``seconds`` are those of
the last run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from _conditions import conditions
from _drawn_raster import Drawing, draw, truth_of
from _raster_scores import (
    across_seams,
    objects_of_file,
    pasted,
    pieces_of_ledger,
    score,
    suppressed,
    unjoined,
)
from scipy import ndimage

import samforge
from samforge.core.detections import Detections
from samforge.core.masks import Masks
from samforge.rasters import RasterPlan, segment_raster
from samforge.rasters.grid import Grid
from samforge.rasters.ledger import Ledger

LIMITS = {"count_error": 0.01, "mean_iou": 0.95, "peak_gib": 2.0, "growth": 1.25}
"""The last is of the peak at 400 megapixels over that at 100."""
CELL = 4
LEAST_SEEN = 0.1
KINDS = {
    # Shapes a megapixel, radius, window, overlap. The larger half of the oracle's shapes is longer
    # than windows overlap: these have to be joined. The tiny model was taught shapes of 17 to 50
    # pixels in pictures of 224: windows of 896 show these four times as large.
    "seams": (20, (22.0, 104.0), 1024, 112),
    "model": (6.4, (68.0, 200.0), 896, 432),
}


class Oracle:
    """Reads shapes from colours that are their numbers."""

    image_size = 1024
    digest = "oracle"

    def __init__(self, areas: dict[int, int]) -> None:
        self._areas = areas

    def predict(self, image: Any, *, text: tuple[str, ...], **_: Any) -> Detections:
        """What a window shows of shapes."""
        wide = image.astype(np.int32)
        numbers = wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]
        crops = []
        numbers[numbers > max(self._areas)] = 0  # grey beyond the raster, blends of the overview
        for number, place in enumerate(ndimage.find_objects(numbers), 1):
            if place is None or number not in self._areas:
                continue
            rows, columns = np.nonzero(numbers[place] == number)
            if len(rows) < LEAST_SEEN * self._areas[number]:
                continue
            rows, columns = rows + place[0].start, columns + place[1].start
            crops.append(_through_cells(rows, columns, numbers.shape))
        size_hw = (image.shape[0], image.shape[1])
        count = len(crops)
        return Detections(
            masks=Masks.from_crops(crops, size_hw),
            boxes_xyxy=np.zeros((count, 4), np.float32),
            scores=np.full(count, 0.9, np.float32),
            labels=text * count,
            size_hw=size_hw,
            best_scores=dict.fromkeys(text, 0.9),
        )


def _through_cells(rows: Any, columns: Any, shape: tuple[int, int]) -> Any:
    """Coverage of cells, stretched to pixels again and cut at a half."""
    from PIL import Image

    top, left = rows.min() // CELL * CELL - CELL, columns.min() // CELL * CELL - CELL
    height = -(-(rows.max() + 1 - top) // CELL) * CELL + CELL
    width = -(-(columns.max() + 1 - left) // CELL) * CELL + CELL
    mask = np.zeros((height, width), np.float32)
    mask[rows - top, columns - left] = 1
    # Beyond the window nothing is known: what reaches its edge reaches on.
    mask = _continued(mask, top, left, shape)
    cells = mask.reshape(height // CELL, CELL, width // CELL, CELL).mean((1, 3))
    smooth = Image.fromarray(cells).resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(smooth) > 0.5
    first_row, first_column = max(0, -top), max(0, -left)
    pixels = pixels[first_row : shape[0] - top, first_column : shape[1] - left]
    return pixels, (top + first_row, left + first_column)


def _continued(mask: Any, top: int, left: int, shape: tuple[int, int]) -> Any:
    if top < 0:
        mask[:-top] = mask[-top]
    if left < 0:
        mask[:, :-left] = mask[:, -left][:, None]
    if top + len(mask) > shape[0]:
        mask[shape[0] - top :] = mask[shape[0] - top - 1]
    if left + mask.shape[1] > shape[1]:
        mask[:, shape[1] - left :] = mask[:, shape[1] - left - 1][:, None]
    return mask


def peak_kib() -> int:
    """Most resident memory of this process, since it began.

    ``getrusage`` would count the process that started it: Linux hands its peak down.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def segmented(kind: str, raster: Path, side: int, bundle: Path | None) -> dict[str, Any]:
    """In a process of its own: segment, and keep a copy of what windows found."""
    _, _, window, overlap = KINDS[kind]
    if bundle is None:
        areas = json.loads(raster.with_suffix(".json").read_text(encoding="utf-8"))
        segmenter: Any = Oracle(dict(enumerate(areas, 1)))
    else:
        segmenter = samforge.load(bundle)
    plan = RasterPlan(
        raster=raster,
        outs=(raster.with_suffix(".gpkg"),),
        text=("object",),
        window=window,
        overlap=overlap,
    )
    kept = raster.with_suffix(".ledger")
    grid = plan.grid((side, side), segmenter.image_size)
    left = grid.shape[0] * grid.shape[1]

    def done() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            for suffix in ("", "-wal"):  # what is written last stands in the second
                shutil.copy(f"{plan.ledger}{suffix}", f"{kept}{suffix}")

    start = time.perf_counter()
    result = segment_raster(segmenter, plan, done=done)
    key = plan.key(segmenter.digest, grid)
    return {
        "windows": result.windows,
        "resumed": result.resumed,
        "failures": len(result.failures),
        "sources": dict(result.sources),
        "seconds": round(time.perf_counter() - start, 1),
        "milliseconds": {one.stage: round(one.milliseconds) for one in result.stages},
        "peak_gib": round(peak_kib() / 2**20, 3),
        "key": key,
    }


def measured(kind: str, megapixels: int, bundle: Path | None, folder: Path) -> dict[str, Any]:
    """Draw, segment, and compare every method with the truth."""
    density, radius, window, overlap = KINDS[kind]
    side = round((megapixels * 1e6) ** 0.5)
    drawing = Drawing(
        side=side, count=round(density * megapixels), radius=radius, numbered=kind == "seams"
    )
    raster = folder / f"{kind}-{megapixels}.tif"
    if not raster.exists():
        draw(drawing, raster.with_suffix(".part"))
        raster.with_suffix(".part").rename(raster)
    words = [sys.executable, __file__, kind, *([str(bundle)] if bundle else [])]
    words += ["--side", str(raster), str(side)]
    truth = truth_of(drawing)
    areas = json.dumps([one.area for one in truth])
    raster.with_suffix(".json").write_text(areas, encoding="utf-8")
    run = subprocess.run(words, stdout=subprocess.PIPE, check=True, text=True)
    report: dict[str, Any] = json.loads(run.stdout)
    grid = Grid(size_hw=(side, side), window=window, overlap=overlap)
    with Ledger(raster.with_suffix(".ledger"), report.pop("key"), restart=False) as ledger:
        pieces = pieces_of_ledger(ledger, grid)
    methods = {
        "samforge": objects_of_file(raster.with_suffix(".gpkg")),
        "no joining": unjoined(pieces),
        "paste": pasted(pieces, grid),
        "NMS": suppressed(pieces),
    }
    return {
        "megapixels": megapixels,
        "shapes": len(truth),
        "across_seams": round(across_seams(truth, grid), 3),
        "window": window,
        "overlap": overlap,
        **report,
        "methods": {name: asdict(score(found, truth)) for name, found in methods.items()},
    }


def missed_limits(rows: list[dict[str, Any]]) -> list[str]:
    """Limits that do not hold, in words."""
    said = []
    for row in rows:
        ours, size = row["methods"]["samforge"], row["megapixels"]
        if abs(ours["count_error"]) > LIMITS["count_error"]:
            said.append(f"{size} megapixels: count error {ours['count_error']:.2%}")
        if ours["mean_iou"] < LIMITS["mean_iou"]:
            said.append(f"{size} megapixels: mean IoU {ours['mean_iou']:.3f}")
        if row["peak_gib"] > LIMITS["peak_gib"]:
            said.append(f"{size} megapixels: {row['peak_gib']:.2f} GiB")
    if len(rows) > 1 and rows[-1]["peak_gib"] > LIMITS["growth"] * rows[0]["peak_gib"]:
        said.append(f"memory grows from {rows[0]['peak_gib']} to {rows[-1]['peak_gib']} GiB")
    return said


def main() -> int:
    """Measure one kind; 1 where a limit does not hold."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("--megapixels", type=int, nargs="+", default=[100, 400])
    parser.add_argument("--out", type=Path, help="JSON to write")
    parser.add_argument("--folder", type=Path, help="where rasters and windows are kept")
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if (chosen.kind == "model") != (chosen.bundle is not None):
        parser.error("model wants a bundle, and seams takes none")
    if chosen.side:
        raster, side = Path(chosen.side[0]), int(chosen.side[1])
        print(json.dumps(segmented(chosen.kind, raster, side, chosen.bundle)))
        return 0
    rows: list[dict[str, Any]] = []
    missed: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or Path(temporary)
        for size in chosen.megapixels:
            rows.append(measured(chosen.kind, size, chosen.bundle, folder))
            missed = missed_limits(rows)
            report = {"kind": chosen.kind, "limits": LIMITS, "rows": rows, "missed": missed}
            text = json.dumps({**conditions(), **report}, indent=2)
            print(text, flush=True)
            if chosen.out is not None:
                chosen.out.write_text(text + "\n", encoding="utf-8")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
