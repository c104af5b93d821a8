"""``samforge compare``: how right bundles are on labelled data, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import samforge
from samforge.apps.cli.output import (
    JsonOption,
    mebibytes,
    print_json,
    print_note,
    print_table,
    shown_path,
)
from samforge.apps.cli.progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from samforge.apps.cli.comparison import BundleAccuracy

_COLUMNS = (
    "bundle",
    "built for",
    "size\nMiB",
    "text\nF1",
    "mask\nIoU",
    "presence",
    "boxes\nF1",
    "ms per\nimage",
)


def compare(
    bundles: Annotated[
        list[Path], typer.Argument(metavar="BUNDLE", help="Folders that samforge build made.")
    ],
    data: Annotated[
        str, typer.Option("--data", help="Labelled data: scenes:N, N drawn held-out scenes.")
    ] = "scenes:1000",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Number of the first scene.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Measure bundles on labelled data: F1 of masks at IoU 0.5, mask IoU, presence, time."""
    from samforge.apps.cli.comparison import compare_bundles, require_words
    from samforge.apps.cli.data import data_from_text

    source = data_from_text(data, seed=seed)
    opened = [samforge.open_bundle(path) for path in bundles]
    for bundle in opened:
        require_words(bundle, source)
    with progress_bar(source.name, source.count * len(opened), as_json=as_json) as done:
        rows = compare_bundles(opened, source, done=done)
    if as_json:
        print_json("compare", {"data": source.name, "seed": seed, "bundles": rows})
    else:
        print_accuracy(rows, title=f"Accuracy on {source.name}")


def print_accuracy(rows: Sequence[BundleAccuracy], *, title: str) -> None:
    """Print one row a bundle."""
    print_table(
        title,
        _COLUMNS,
        [
            (
                shown_path(row.bundle),
                f"{row.target}\n{row.precision}",
                mebibytes(row.bytes),
                *_figures(row),
                f"{row.accuracy.image_ms:.1f}",
            )
            for row in rows
        ],
        numbers=_COLUMNS[2:],
    )
    for row in rows:
        if row.random_weights:
            print_note(f"{row.bundle} has random weights: its figures mean nothing.")


def _figures(row: BundleAccuracy) -> tuple[str | None, ...]:
    text, boxes = row.accuracy.text, row.accuracy.boxes
    by_text = [None] * 3 if text is None else [text.f1, text.mean_iou, text.presence]
    figures = [*by_text, None if boxes is None else boxes.f1]
    return tuple(None if figure is None else f"{figure:.4f}" for figure in figures)
