"""``samforge raster``: finds objects in rasters and very large pictures, as files for maps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import samforge
from samforge.apps.cli.finding import (
    MaskThresholdOption,
    TextOption,
    ThresholdForOption,
    ThresholdOption,
)
from samforge.apps.cli.output import (
    JsonOption,
    print_json,
    print_line,
    print_note,
    print_table,
    shown_path,
)
from samforge.apps.cli.places import DeviceOption, DigestOption, OverwriteOption, check_outputs
from samforge.apps.cli.progress import progress_bar
from samforge.core.errors import Interrupted
from samforge.core.files import writable_folder
from samforge.workflows.interrupts import termination_interrupts

if TYPE_CHECKING:
    from samforge.rasters import RasterPlan, RasterResult

MOST_NAMED = 10
"""Windows that failed are named one by one up to here; --json and the files name all."""


def raster(  # noqa: PLR0913  every argument is an option that a user types
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="Folder that samforge build made.")
    ],
    source: Annotated[
        Path, typer.Argument(metavar="RASTER", help="GeoTIFF, or another raster or picture.")
    ],
    *,
    out: Annotated[
        list[Path],
        typer.Option("--out", help="File to write: .gpkg, .parquet or .geojson. Repeat it."),
    ],
    preview: Annotated[
        Path | None,
        typer.Option(
            "--preview", help="Picture to write, with outlines: .png.", show_default="none"
        ),
    ] = None,
    text: TextOption = None,
    threshold: ThresholdOption = 0.5,
    threshold_for: ThresholdForOption = None,
    mask_threshold: MaskThresholdOption = 0.5,
    window: Annotated[
        int | None,
        typer.Option(
            "--window",
            help="Side of a window, pixels: smaller ones show objects larger.",
            show_default="the model's image size",
        ),
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option(
            "--overlap",
            help="Pixels that windows share: at least the length of the objects.",
            show_default="a quarter of a window",
        ),
    ] = None,
    bands: Annotated[
        str | None,
        typer.Option(
            "--bands",
            help="One or three bands, from 1: '4,3,2'.",
            show_default="red, green and blue",
        ),
    ] = None,
    stretch: Annotated[
        str,
        typer.Option(
            "--stretch",
            help="Values that become black and white: '0,3000'. auto leaves 8-bit ones, and takes "
            "the 2nd and 98th percentile of the whole raster of others.",
        ),
    ] = "auto",
    extent: Annotated[
        str | None,
        typer.Option(
            "--extent",
            help="Only objects that reach into left,bottom,right,top, in coordinates of the "
            "raster; of plain pictures the least column and row, then the largest.",
            show_default="all",
        ),
    ] = None,
    min_area: Annotated[
        float,
        typer.Option(
            "--min-area",
            help="Leave out what is smaller, in units of the map: square metres, for most.",
        ),
    ] = 0.0,
    simplify: Annotated[
        float,
        typer.Option(
            "--simplify", help="Let outlines move by so many pixels, to have fewer corners."
        ),
    ] = 0.0,
    crs: Annotated[
        str | None,
        typer.Option(
            "--crs",
            help="Coordinate reference system of a raster that has none: EPSG:32633.",
            show_default="the raster's",
        ),
    ] = None,
    coarse: Annotated[
        bool,
        typer.Option(
            "--coarse/--no-coarse",
            help="Look at a small picture of the whole for objects larger than windows share.",
        ),
    ] = True,
    restart: Annotated[
        bool, typer.Option("--restart", help="Forget what a stopped run has kept.")
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, help="Processor threads.", show_default="all cores"),
    ] = None,
    device: DeviceOption = "auto",
    digest: DigestOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Find what phrases name in a raster of any size; write each object once, with its outline.

    Windows that are done are kept beside the first file until all are: run the same command again
    to go on after a stop, or to try windows that failed.
    """
    from samforge.rasters import RasterPlan, bands_from_text, extent_from_text, stretch_from_text
    from samforge.runtime import Thresholds
    from samforge.workflows.thresholds import thresholds_from_texts

    plan = RasterPlan(
        raster=source,
        outs=tuple(path.absolute() for path in out),
        preview=None if preview is None else preview.absolute(),
        text=tuple(dict.fromkeys(text or ())),
        thresholds=Thresholds(score=threshold, mask=mask_threshold),
        own_thresholds=thresholds_from_texts(threshold_for or (), text or ()),
        window=window,
        overlap=overlap,
        bands=None if bands is None else bands_from_text(bands),
        stretch=stretch_from_text(stretch),
        extent=None if extent is None else extent_from_text(extent),
        min_area=min_area,
        simplify=simplify,
        crs=crs,
        coarse=coarse,
        restart=restart,
    )
    with plan.opened():
        pass  # refused before a model is loaded
    outputs = (*plan.outs, *filter(None, (plan.preview,)))
    check_outputs(outputs, overwrite=overwrite)
    for path in outputs:
        writable_folder(path.parent)
    opened = samforge.open_bundle(bundle, digest=digest)
    result = _run(opened, plan, device=device, threads=threads, as_json=as_json)
    if as_json:
        _print_json(opened, plan, result)
    else:
        _print(plan, result)
    if result.failures:
        raise typer.Exit(result.failures[0].exit_code)


def _run(
    bundle: samforge.Bundle, plan: RasterPlan, *, device: str, threads: int | None, as_json: bool
) -> RasterResult:
    from samforge.rasters import expected_windows

    if bundle.manifest.recipe.get("random_weights"):
        print_note(f"{bundle.root} has random weights: what it finds means nothing.")
    segmenter = samforge.load(bundle, device=device, threads=threads)
    total = expected_windows(plan, segmenter.image_size)
    try:
        with progress_bar("windows", total, as_json=as_json) as done, termination_interrupts():
            return samforge.segment_raster(segmenter, plan, done=done)
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"Stopped. {shown_path(plan.ledger)} keeps the windows that are done: run the same "
            "command again to go on."
        ) from error


def _print_json(bundle: samforge.Bundle, plan: RasterPlan, result: RasterResult) -> None:
    payload: dict[str, Any] = {
        "bundle": bundle.root,
        "raster": plan.raster,
        "out": result.outs,
        "preview": plan.preview,
        "size_hw": result.size_hw,
        "crs": result.crs,
        "area_unit": result.area_unit,
        "bands": result.bands,
        "stretch": result.stretch,
        "window": result.window,
        "overlap": result.overlap,
        "windows": {
            "count": result.windows,
            "without_data": result.without_data,
            "resumed": result.resumed,
            "failed": len(result.failures),
        },
        "objects": {
            "count": result.objects,
            "too_small": result.too_small,
            "phrases": result.phrases,
            "sources": result.sources,
        },
        "failures": result.failures,
        "notes": result.notes,
        "seconds": round(result.seconds, 3),
        "stages": result.stages,
    }
    if result.failures:
        first = result.failures[0]
        payload["error"] = {
            "kind": first.kind,
            "message": f"Window {first.window}: {first.message}",
            "exit_code": first.exit_code,
        }
    print_json("raster", payload, ok=not result.failures)


def _print(plan: RasterPlan, result: RasterResult) -> None:
    height, width = result.size_hw
    print_table(
        f"{plan.raster.name}: {width} x {height} pixels, {result.crs}, "
        f"{result.windows} windows of {result.window} pixels",
        ("phrase", "objects", f"area, {result.area_unit}", "best score"),
        [
            (phrase, tally.objects, f"{tally.area:,.1f}", f"{tally.best_score:.3f}")
            for phrase, tally in result.phrases.items()
        ],
        numbers=("objects", f"area, {result.area_unit}", "best score"),
    )
    said = [f"{count} {source}" for source, count in sorted(result.sources.items())]
    if said:
        print_line(f"Outlines: {', '.join(said)}.")
    if result.too_small:
        print_line(f"{result.too_small} smaller than --min-area were left out.")
    if result.without_data:
        print_line(f"{result.without_data} windows hold no data and were skipped.")
    if result.resumed:
        print_line(f"{result.resumed} windows were taken over from an earlier run.")
    print_line(f"{result.seconds:.1f} s, {result.windows / result.seconds:.1f} windows a second.")
    for note in result.notes:
        print_note(note)
    for path in filter(None, (*result.outs, plan.preview)):
        print_line(f"Written to {shown_path(path)}", style="green")
    for one in result.failures[:MOST_NAMED]:
        place = ", ".join(map(str, one.box))
        print_note(f"{one.kind}: Window {one.window} ({place}): {one.message}", style="red")
    if result.failures:
        print_note(
            f"{len(result.failures)} of {result.windows} windows failed. The others are written. "
            f"{shown_path(plan.ledger)} keeps them: run the same command again to try these alone.",
            style="red",
        )
