"""The steps of a build as a table: what each took and how faithful its result is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from samforge.apps.cli.output import mebibytes, print_line, print_table

if TYPE_CHECKING:
    from samforge.core.manifest import StepResult

_COLUMNS = (
    "step",
    "part",
    "time\ns",
    "size\nMiB",
    "largest\ndiff.",
    "SQNR\ndB",
    "cosine",
    "peak\nGiB",
)
_RESUMED = "*"
"""Behind the name of a step that was resumed: in 80 columns no column has room for it."""

NOTES_BYTES = 2**16
"""Below this, a step left nothing in the bundle but notes for the report."""


def print_steps(steps: Sequence[StepResult], *, title: str = "Steps") -> None:
    """Print one row a step, each figure the worst over its tensors and sizes.

    Words of a step's name are lines of their own where it has several. What was resumed is marked.

    The largest difference is what the gates limit: relative where values exceed 1.
    """
    rows = [
        (
            _name(step),
            step.part,
            f"{step.seconds:.1f}",
            mebibytes(step.bytes) if step.bytes >= NOTES_BYTES else None,
            _worst(step, "gated", max, "{:.1e}"),
            _worst(step, "sqnr_db", min, "{:.1f}"),
            _worst(step, "cosine", min, "{:.6f}"),
            None if step.peak_gib is None else f"{step.peak_gib:.1f}",
        )
        for step in steps
    ]
    print_table(title, _COLUMNS, rows, numbers=_COLUMNS[2:], unbroken=("step", "part"))
    if any(step.resumed for step in steps):
        print_line(f"{_RESUMED} resumed: taken over from a build that was stopped.")
    print_line("Differences are relative where values exceed 1, as the gates take them.")


def _name(step: StepResult) -> tuple[str, ...]:
    name = step.name + (_RESUMED if step.resumed else "")
    return tuple(name.replace("-", "-\n").split("\n"))


def print_accounts(steps: Sequence[StepResult]) -> None:
    """Print where the checkpoint's tensors went, a row for each part and step."""
    from samforge.report import account_rows

    rows = [(row.part, row.step, row.weights, row.words) for row in account_rows(steps)]
    if rows:
        columns = ("part", "step", "tensors", "found as")
        print_table("Account of the weights", columns, rows, numbers=("tensors",))


def _worst(
    step: StepResult, figure: str, choose: Callable[[list[float]], float], form: str
) -> str | None:
    # A manifest keeps infinity as a string.
    values = [float(row[figure]) for row in step.fidelity if figure in row]
    if not values:
        return None
    value = choose(values)
    return "0" if value == 0 else form.format(value)
