"""``samforge compare``: how right bundles are on labelled data, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from samforge.apps.cli.output import (
    JsonOption,
    mebibytes,
    print_json,
    print_line,
    print_note,
    print_table,
    shown_path,
)
from samforge.apps.cli.places import DeviceOption, DigestsOption, opened_bundles
from samforge.apps.cli.progress import progress_bar
from samforge.apps.cli.tracking_tables import GATE_COLUMNS, gate_rows, in_digits, print_tracking
from samforge.core.errors import FidelityError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from samforge.workflows.compare import BundleAccuracy, GateCheck, LeftOut
    from samforge.workflows.compare_videos import BundleTracking

_COLUMNS = (
    "bundle",
    "size\nMiB",
    "text\nF1",
    "mask\nIoU",
    "presence",
    "boxes\nF1",
    "cgF1",
    "ms per\nimage",
)
_FIDELITY_COLUMNS = (
    "bundle",
    "mask\nIoU",
    "IoU of\nall",
    "box\nIoU",
    "same\nobjects",
    "presence\nagrees",
    "score\nshift",
    "largest\nshift",
    "shift if\nabsent",
    "cgF1\ndrop",
)


def compare(  # noqa: PLR0913, PLR0917  every argument is an option that a user types
    bundles: Annotated[
        list[Path], typer.Argument(metavar="BUNDLE", help="Folders that samforge build made.")
    ],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            help="Labelled data: scenes:N, N drawn held-out scenes; coco:FILE.json; clips:N, "
            "N drawn held-out clips; videos:FILE.json.",
        ),
    ] = "scenes:1000",
    reference: Annotated[
        Path | None,
        typer.Option(
            "--reference",
            help="Bundle that the others are compared with. Default: the first.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            "--images",
            help="Folder of the COCO file's images. Default: next to the file.",
            show_default=False,
        ),
    ] = None,
    videos: Annotated[
        Path | None,
        typer.Option(
            "--videos",
            help="Folder of the frames of labelled videos. Default: next to the file.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", min=1, help="Use the first N images or videos only.", show_default=False
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            "--seed", min=0, help="Number of the first scene or clip; draws absent phrases."
        ),
    ] = 0,
    gate: Annotated[
        bool,
        typer.Option("--gate", help="Fail unless every bundle holds its recipe's gates."),
    ] = False,
    device: DeviceOption = "auto",
    digest: DigestsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure bundles on labelled data: accuracy, cgF1, and fidelity to the first of them.

    On videos objects are followed by phrases and by clicks: J&F, IDF1, identity switches, and how
    far tracks and decisions are from those of the first. A picture, a video or an annotation that
    cannot be used is named at the end; the others count.
    """
    from samforge.workflows.compare import GateCheck, Problems, check_gates, require_reference
    from samforge.workflows.compare import compare as compared
    from samforge.workflows.compare_videos import check_tracking
    from samforge.workflows.compare_videos import compare_videos as followed
    from samforge.workflows.labelled_data import DataOptions, LabelledVideos, data_from_text

    problems = Problems()
    options = DataOptions(seed=seed, folder=images, limit=limit, videos=videos)
    source = data_from_text(data, options, report=problems)
    paths = [*([reference] if reference else []), *(p for p in bundles if p != reference)]
    opened = opened_bundles(paths, digest)
    if gate:
        require_reference(opened)
    check = GateCheck(failed=(), notes=())
    rows: Sequence[BundleAccuracy | BundleTracking]
    if isinstance(source, LabelledVideos):
        with progress_bar(source.name, source.frames * len(opened), as_json=as_json) as done:
            rows = tracks = followed(
                opened, source, gates=gate, device=device, done=done, report=problems
            )
        check = check_tracking(opened, tracks) if gate else check
        if not as_json:
            print_tracking(tracks, check.notes, title=f"Tracking on {source.name}")
    else:
        with progress_bar(source.name, source.count * len(opened), as_json=as_json) as done:
            rows = found = compared(
                opened, source, gates=gate, device=device, done=done, report=problems
            )
        check = check_gates(opened, found) if gate else check
        if not as_json:
            print_accuracy(found, title=f"Accuracy on {source.name}")
            print_fidelity(found)
            _print_gates(found, check.notes)
    if as_json:
        _print_json(source.name, seed, rows, check if gate else None, problems.all)
    else:
        _print_left_out(problems.all)
    if check.failed and not as_json:
        raise FidelityError("\n".join(check.failed))
    if check.failed or problems.all:
        raise typer.Exit(FidelityError.exit_code if check.failed else problems.all[0].exit_code)
    if gate and not as_json:
        print_line(f"Every bundle holds its gates against {shown_path(rows[0].bundle)}.")


def _print_left_out(left_out: Sequence[LeftOut]) -> None:
    for one in left_out:
        named = one.message if one.item in one.message else f"{one.item}: {one.message}"
        print_note(f"{one.kind}: {named}", style="red")
    if left_out:
        print_note(f"{len(left_out)} left out; the figures are of the others.", style="red")


def _print_json(
    data: str,
    seed: int,
    rows: Sequence[BundleAccuracy | BundleTracking],
    check: GateCheck | None,
    left_out: Sequence[LeftOut],
) -> None:
    """Print the figures and, where gates were asked for, what failed: one object in any case."""
    failed = () if check is None else check.failed
    payload: dict[str, object] = {
        "data": data,
        "seed": seed,
        "bundles": rows,
        "failures": left_out,
    }
    if left_out:
        first = left_out[0]
        payload["error"] = {
            "kind": first.kind,
            "message": first.message,
            "exit_code": first.exit_code,
        }
    if check is not None:
        payload |= {"failed_gates": failed, "notes": check.notes}
    if failed:
        payload["error"] = {
            "kind": FidelityError.__name__,
            "message": "\n".join(failed),
            "exit_code": FidelityError.exit_code,
        }
    print_json("compare", payload, ok=not failed and not left_out)


def print_accuracy(rows: Sequence[BundleAccuracy], *, title: str) -> None:
    """Print one row a bundle."""
    print_table(
        title,
        _COLUMNS,
        [
            (
                (shown_path(row.bundle), f"{row.target} {row.precision}"),
                mebibytes(row.bytes),
                *_figures(row),
                f"{row.accuracy.image_ms:.1f}",
            )
            for row in rows
        ],
        numbers=_COLUMNS[1:],
    )
    for row in rows:
        if row.random_weights:
            print_note(f"{row.bundle} has random weights: its figures mean nothing.")
    if any(_asked_of_one_kind(row) for row in rows):
        print_note("cgF1 is 0: it needs phrases that are present and phrases that are absent.")


def print_fidelity(rows: Sequence[BundleAccuracy]) -> None:
    """Print how far the others are from the first; nothing when there is only one."""
    if len(rows) < 2:
        return
    print_table(
        f"Fidelity to {shown_path(rows[0].bundle)} ({rows[0].target}, {rows[0].precision})",
        _FIDELITY_COLUMNS,
        [(shown_path(row.bundle), *_fidelity(row)) for row in rows[1:]],
        numbers=_FIDELITY_COLUMNS[1:],
    )
    print_line(
        "mask IoU: of objects that both find; IoU of all: 0 for those that one of them misses."
    )


def _print_gates(rows: Sequence[BundleAccuracy], notes: Sequence[str]) -> None:
    """Print every gate with the interval of its figure; nothing where none was asked for."""
    for row in rows:
        if row.verdict is None:
            continue
        print_table(
            f"Gates of {shown_path(row.bundle)}: {row.verdict.in_words()}",
            GATE_COLUMNS,
            gate_rows(row.verdict.judged),
            numbers=GATE_COLUMNS[1:5],
        )
    for note in notes:
        print_note(note)


def _figures(row: BundleAccuracy) -> tuple[str | None, ...]:
    text, boxes, cgf1 = row.accuracy.text, row.accuracy.boxes, row.accuracy.cgf1
    by_text = [None] * 3 if text is None else [text.f1, text.mean_iou, text.presence]
    return in_digits(
        *by_text, None if boxes is None else boxes.f1, None if cgf1 is None else cgf1.cgf1
    )


def _fidelity(row: BundleAccuracy) -> tuple[str | None, ...]:
    figures = row.accuracy.fidelity
    if figures is None:
        return (None,) * 9
    return in_digits(
        figures.mask_iou,
        figures.mask_iou_all,
        figures.box_iou,
        figures.same_objects,
        figures.presence_agreement,
        figures.best_score_shift_mean,
        figures.best_score_shift_max,
        figures.absent_score_shift,
        row.cgf1_drop,
    )


def _asked_of_one_kind(row: BundleAccuracy) -> bool:
    """Whether every phrase was present, or every one absent."""
    figures = row.accuracy.cgf1
    if figures is None:
        return False
    present = figures.found_present + figures.missed_present
    return 0 in (present, figures.found_absent + figures.missed_absent)
