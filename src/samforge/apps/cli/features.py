"""``samforge features``: what the image encoder sees, as a PCA picture and figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import samforge
from samforge.apps.cli.output import (
    JsonOption,
    print_json,
    print_line,
    print_note,
    print_table,
    shown_path,
)
from samforge.apps.cli.places import DigestOption, OverwriteOption, check_outputs
from samforge.workflows.inputs import images_from_paths

if TYPE_CHECKING:
    from samforge.workflows.features import FeatureReport


def features(  # noqa: PLR0913  every argument is an option that a user types
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="Folder that samforge build made.")
    ],
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE", help="Image files, or folders of them.")
    ],
    *,
    out: Annotated[Path, typer.Option("--out", help="PNG file for the picture.")],
    shared: Annotated[
        bool,
        typer.Option("--shared", help="One PCA for all images: colours mean the same in each."),
    ] = False,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold",
            help="Foreground exceeds this share of the first component, 0 to 1; 0 takes all.",
            show_default="the best split",
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", help="Which feature map.", show_default="the coarsest"),
    ] = None,
    runs: Annotated[int, typer.Option("--runs", min=1, help="Runs to time.")] = 5,
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, help="Processor threads.", show_default="all cores"),
    ] = None,
    digest: DigestOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Draw the image encoder's features as DINO users know them, with figures and latency.

    The first principal component tells the foreground; the foreground's own three components are
    its red, green and blue. Works with the backbone of dinov3 and the vision part of sam3.
    """
    from samforge.workflows.features import PictureSettings, feature_pictures

    check_outputs([out], overwrite=overwrite)
    opened = samforge.open_bundle(bundle, digest=digest)
    if opened.manifest.recipe.get("random_weights"):
        print_note(f"{opened.root} has random weights: its features mean nothing.")
    files, unusable = images_from_paths(images, out.parent)
    if unusable:
        raise unusable[0][1]
    settings = PictureSettings(shared=shared, threshold=threshold, output=output)
    report = feature_pictures(opened, files, out, settings, runs=runs, threads=threads)
    if as_json:
        payload: dict[str, Any] = {
            "bundle": opened.root,
            "out": report.out,
            "part": report.part,
            "runtime": report.runtime,
            "processor": report.processor,
            "output": report.output,
            "images": report.images,
            "latency": report.latency,
        }
        print_json("features", payload)
    else:
        _print(report)


def _print(report: FeatureReport) -> None:
    height, width = report.images[0].cells_hw  # one size: the part has one
    print_table(
        f"{report.part}: {report.output}, {height} x {width} cells, on {report.runtime} "
        f"({report.processor})",
        ("image", "mean", "std", "norm", "range", "foreground"),
        [
            (
                one.image.name,
                *(f"{figure:.3f}" for figure in (one.statistics.mean, one.statistics.std)),
                f"{one.statistics.norm:.2f}",
                f"{one.statistics.min:.2f} to {one.statistics.max:.2f}",
                f"{one.foreground:.0%}",
            )
            for one in report.images
        ],
        numbers=("mean", "std", "norm", "range", "foreground"),
    )
    latency = report.latency
    print_line(
        f"{report.part}: {latency.median_ms:.1f} ms (median of {latency.samples} runs, "
        f"{latency.min_ms:.1f} to {latency.max_ms:.1f})"
    )
    print_line(f"Written to {shown_path(report.out)}", style="green")
