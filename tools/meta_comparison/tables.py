"""The comparison for people: plain text, no library needed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from meta_comparison.differences import Case, Comparison, worst_case

HEADINGS = (
    "picture",
    "prompt",
    "presence",
    "logits",
    "scores",
    "boxes",
    "masks (of)",
    "signs",
    "both",
    "only 1",
    "only 2",
    "IoU min",
    "pixels",
)
LEGEND = (
    "Largest differences over all queries, admitted or not: of logits, of scores (0 to 1), of "
    "boxes (fractions of the picture), of mask logits (of the largest), and the share of mask "
    "logits on the other side of 0. Objects that both admit, and that one of the two alone; the "
    "worst IoU of the masks of those in both at the picture's size, and how many of their pixels "
    "differ."
)


def table_of(comparison: Comparison) -> str:
    """One table: a row a case, the worst in the last."""
    title = f"1: {comparison.first}   2: {comparison.second}, on {comparison.pixels}"
    rows = [_row(case) for case in comparison.cases]
    return "\n".join([title, *_lines((HEADINGS, *rows, _worst_row(comparison)))])


def summary_of(comparison: Comparison) -> str:
    """What a comparison says in a few lines."""
    all_of = comparison.summary()
    worst = worst_case(comparison.cases, "scores")
    vision = "; ".join(
        f"{one.picture}: {number(one.features)} of {one.features_size:.1f}"
        + (f" ({one.pixels:.2%} of input values differ)" if one.pixels else "")
        for one in comparison.vision
    )
    iou = all_of["iou_mean"]
    return "\n".join(
        [
            f"  the same objects in {all_of['cases_with_the_same_objects']} of {all_of['cases']} "
            f"cases: {all_of['both']} in both, {all_of['only_first']} only in 1, "
            f"{all_of['only_second']} only in 2"
            + ("" if iou is None else f"; mean mask IoU {iou:.6f}"),
            f"  worst score: {number(worst.scores)} ({worst.picture}, {worst.prompt})",
            f"  features of vision: {vision}; of text: {number(all_of['text'])}",
        ]
    )


def number(value: float | None) -> str:
    """Two digits are enough to judge a difference."""
    if value is None:
        return "–"
    return "0" if value == 0 else f"{value:.1e}"


def _row(case: Case) -> tuple[str, ...]:
    objects = case.objects
    return (
        _short(case.picture),
        _short(case.prompt) + ("" if case.same_tokens else " (other tokens)"),
        *(number(value) for value in (case.presence, case.logits, case.scores, case.boxes)),
        f"{number(case.masks)} ({case.masks_size:.0f})",
        number(case.signs),
        *(str(count) for count in (objects.both, objects.only_first, objects.only_second)),
        _share(objects.iou_min),
        str(objects.pixels),
    )


def _worst_row(comparison: Comparison) -> tuple[str, ...]:
    worst = comparison.summary()
    return (
        "worst, or all",
        "",
        *(number(worst[name]) for name in ("presence", "logits", "scores", "boxes", "masks")),
        number(worst["signs"]),
        *(str(worst[name]) for name in ("both", "only_first", "only_second")),
        _share(worst["iou_min"]),
        str(worst["pixels"]),
    )


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.6f}"


def _short(text: str, most: int = 28) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= most else plain[: most - 1] + "…"


def _lines(rows: Iterable[Sequence[str]]) -> list[str]:
    """Columns of one width, the first two to the left."""
    table = list(rows)
    widths = [max(len(row[i]) for row in table) for i in range(len(HEADINGS))]
    return [
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
