"""Tables of what bundles followed through labelled videos, and of gates with their intervals."""

from __future__ import annotations

import math
from dataclasses import astuple
from typing import TYPE_CHECKING

from samforge.apps.cli.output import mebibytes, print_line, print_note, print_table, shown_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from samforge.measure import Judged, WayAccuracy
    from samforge.workflows.compare_videos import BundleTracking

GATE_COLUMNS = ("gate", "figure", "from", "to", "limit", "holds")
"""Of a table of gates."""
_COLUMNS = ("bundle", "asked by", "objects", "J&F", "J", "F", "IDF1", "identity\nswitches")
_PAIR_COLUMNS = ("bundle", "pairs", "cgF1", "pmF1", "IL_MCC", "MiB", "ms per\nframe")
_FIDELITY_COLUMNS = (
    "bundle",
    "tracks",
    "of the\nbundle",
    "temporal\nIoU",
    "worst\ntrack",
    "J&F drop\ntext",
    "J&F drop\nclicks",
)
_DECISION_COLUMNS = ("bundle", "decided", "reference", "bundle's", "alike", "share")


def print_tracking(
    rows: Sequence[BundleTracking], notes: Iterable[str] = (), *, title: str
) -> None:
    """Print how right each bundle is, how close to the first, and its gates."""
    print_table(
        title,
        _COLUMNS,
        [line for row in rows for line in _lines(row)],
        numbers=_COLUMNS[2:],
    )
    print_table(
        "Pairs of a video and a phrase",
        _PAIR_COLUMNS,
        [_pairs(row) for row in rows],
        numbers=_PAIR_COLUMNS[1:],
    )
    for row in rows:
        if row.random_weights:
            print_note(f"{row.bundle} has random weights: its figures mean nothing.")
        if row.accuracy.cgf1 is not None and not row.accuracy.cgf1.mcc_defined:
            print_note("cgF1 is 0: it needs phrases that are present and phrases that are absent.")
            break
    _print_fidelity(rows)
    for row in rows:
        if row.verdict is not None:
            print_table(
                f"Gates of {shown_path(row.bundle)}: {row.verdict.in_words()}",
                GATE_COLUMNS,
                gate_rows(row.verdict.judged),
                numbers=GATE_COLUMNS[1:5],
            )
    for note in notes:
        print_note(note)


def gate_rows(judged: Iterable[Judged]) -> list[tuple[str | None, ...]]:
    """A row a gate: its figure with the interval, the limit, whether it holds."""
    return [
        (
            f"{one.gate} ({one.where})" if one.where else one.gate,
            *in_digits(*(None if math.isnan(end) else end for end in astuple(one.interval))),
            f"{one.limit:g}",
            "yes" if one.held else "no",
        )
        for one in judged
    ]


def in_digits(*figures: float | None) -> tuple[str | None, ...]:
    """Figures with four digits."""
    return tuple(None if figure is None else f"{figure:.4f}" for figure in figures)


def _lines(row: BundleTracking) -> Iterable[tuple[object, ...]]:
    """One line a way of asking."""
    ways = (("phrases", row.accuracy.text), ("clicks", row.accuracy.clicks))
    named: object = (shown_path(row.bundle), f"{row.target} {row.precision}")
    for name, way in ways:
        if way is not None:
            yield (named, name, *_figures(way))
            named = ""


def _pairs(row: BundleTracking) -> tuple[object, ...]:
    one = row.accuracy
    pairs: tuple[object, ...] = (None,) * 4
    if one.cgf1 is not None:
        cgf1 = one.cgf1
        count = sum(
            (cgf1.found_present, cgf1.found_absent, cgf1.missed_present, cgf1.missed_absent)
        )
        pairs = (count, *in_digits(cgf1.cgf1, cgf1.pmf1, cgf1.il_mcc))
    return (shown_path(row.bundle), *pairs, mebibytes(row.bytes), f"{one.frame_ms:.1f}")


def _figures(way: WayAccuracy) -> tuple[object, ...]:
    return (way.objects, *in_digits(way.j_and_f, way.j, way.f, way.idf1), way.switches)


def _print_fidelity(rows: Sequence[BundleTracking]) -> None:
    """Print how far the others are from the first; nothing when there is only one."""
    if len(rows) < 2:
        return
    first = rows[0]
    tracks: list[tuple[object, ...]] = []
    decisions: list[tuple[object, ...]] = []
    for row in rows[1:]:
        found, name = row.accuracy.fidelity, shown_path(row.bundle)
        if found is None:
            tracks.append((name, *(None,) * 6))
            continue
        tracks.append(
            (
                name,
                found.tracks.tracks,
                found.tracks.measured_tracks,
                *in_digits(found.tracks.mean_iou, found.tracks.track_iou),
                *in_digits(*(found.j_and_f_drop.get(way) for way in ("text", "clicks"))),
            )
        )
        for kind, one in found.decisions.items():
            counts = (one.reference, one.measured, one.alike)
            decisions.append((name, kind, *counts, *in_digits(one.share)))
            name = ""
    print_table(
        f"Fidelity to {shown_path(first.bundle)} ({first.target}, {first.precision})",
        _FIDELITY_COLUMNS,
        tracks,
        numbers=_FIDELITY_COLUMNS[1:],
    )
    print_table(
        "Decisions of the rules", _DECISION_COLUMNS, decisions, numbers=_DECISION_COLUMNS[2:]
    )
    print_line("alike: decided by both, of the same object on the same frame.")
