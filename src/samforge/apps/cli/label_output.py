"""What ``samforge label`` prints: progress with the time left, what came of it, what failed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from samforge.apps.cli.output import (
    print_json,
    print_line,
    print_note,
    print_table,
    shown_path,
    stderr,
)
from samforge.apps.cli.progress import counting_bar
from samforge.core.words import escaped

if TYPE_CHECKING:
    from samforge.core.bundle import Bundle
    from samforge.labelling import LabelPlan, LabelResult, Ontology, ReviewResult, Watch

_EVERY_SECONDS = 30.0
_SHOWN_FAILURES = 10


@contextmanager
def watched(*, as_json: bool) -> Iterator[Watch]:
    """Show progress while the body runs: a bar on a terminal, a line now and then elsewhere.

    Yields:
        Call it with the items that are done and their number.
    """
    if stderr().is_terminal and not as_json:
        with counting_bar("labelling") as count:
            yield count
        return
    lines = _Lines(silent=as_json)
    yield lines.count


class _Lines:
    """Plain lines for logs of runs that last a night."""

    def __init__(self, *, silent: bool) -> None:
        self._silent = silent
        self._start = self._last = time.monotonic()
        self._first: int | None = None

    def count(self, done: int, total: int) -> None:
        """Tell where it is, at most twice a minute."""
        now = time.monotonic()
        if self._first is None:
            self._first, self._start = done, now
        if self._silent or now - self._last < _EVERY_SECONDS or done == self._first:
            return
        self._last = now
        rate = (done - self._first) / (now - self._start)
        left = duration_text((total - done) / rate)
        print_note(f"{done:,} of {total:,} labelled, {rate:.1f} a second, {left} left", style="")


def duration_text(seconds: float) -> str:
    """A time for people: ``2 h 05 min``, ``40 s``."""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes = round(whole / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def print_plan(
    bundle: Bundle, ontology: Ontology, out: Path, plan: LabelPlan, *, as_json: bool
) -> None:
    """Print what a run would do."""
    if as_json:
        print_json("label", {"bundle": bundle.root, "out": out, "dry_run": True, "plan": plan})
        return
    _print_classes(ontology)
    print_line(
        f"{plan.chosen:,} of {plan.items:,} in the source; {plan.done:,} labelled already, "
        f"{plan.chosen - plan.done:,} to do, {len(plan.phrases)} phrases each."
    )
    print_line(f"Nothing was written to {shown_path(out)}.")
    for note in plan.notes:
        print_note(note)


def _print_classes(ontology: Ontology) -> None:
    rows = [
        (
            number,
            one.name,
            ", ".join(one.sought),
            f"{ontology.threshold_of(one):g}",
            ", ".join(one.negatives) or None,
        )
        for number, one in enumerate(ontology.classes, 1)
    ]
    print_table("Classes", ("#", "class", "phrases", "above", "not"), rows, numbers=("#", "above"))


def print_result(
    bundle: Bundle, result: LabelResult, review: ReviewResult | None, *, as_json: bool
) -> None:
    """Print what came of a run."""
    if as_json:
        payload: dict[str, object] = {"bundle": bundle.root, "result": result}
        if review is not None:
            payload["review"] = {"page": review.page, "ranking": review.ranking}
        if result.failures:
            first = result.failures[0]
            payload["error"] = {
                "kind": first.kind,
                "message": first.message,
                "exit_code": first.exit_code,
            }
        print_json("label", payload, ok=not result.failures)
        return
    print_table(
        f"{result.pictures:,} pictures",
        ("class", "objects"),
        list(result.objects.items()),
        numbers=("objects",),
    )
    if result.labelled:
        rate = result.labelled / result.seconds if result.seconds else 0.0
        print_line(
            f"{result.labelled:,} labelled in {duration_text(result.seconds)} ({rate:.1f} a "
            f"second) on {result.processor}; {result.resumed:,} were labelled before."
        )
    else:
        print_line(f"All {result.resumed:,} were labelled before.")
    print_line(f"Written to {shown_path(result.out)}:", style="green")
    for file in result.files:
        print_line(f"  {file.name}{'/' if file.is_dir() else ''}")
    if review is not None:
        print_line(f"To review, the most unsure first: {shown_path(review.page)}")
    for note in result.notes:
        print_note(note)
    for failure in result.failures[:_SHOWN_FAILURES]:
        print_note(f"{failure.kind}: {escaped(failure.message)}", style="red")
    if result.failures:
        print_note(
            f"{len(result.failures):,} without labels: {shown_path(result.out)}/failures.jsonl "
            "lists all. The next run tries them again.",
            style="red",
        )
