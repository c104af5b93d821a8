"""What ``samforge bench`` measured, as rows for a terminal and for a README."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from samforge.measure import StageLatency
from samforge.workflows.bench import BenchRow
from samforge.workflows.machine import Machine

CASE = ("bundle", "batch", "phrases")
"""Headings that say which row it is."""

SPEED = ("median ms", "mean ms", "p95 ms", "p99 ms", "images/s", "speed-up")
"""Headings of the figures of a row."""

BUNDLE = ("target", "precision", "size MiB", "peak MiB", "GPU MiB")
"""Headings of what is said of a bundle, the same for every row of it."""

_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """What the figures were measured on; nothing that names the machine."""

    date: str
    """``2026-01-31``."""
    processor: str
    """Name of the processor, its cores and memory."""
    gpus: tuple[str, ...]
    """Name and driver of each GPU."""
    versions: dict[str, str]
    """samforge, Python, numpy and each runtime."""
    input: str
    """What the images are."""
    warm_up: int
    """Rounds before the first that counts."""
    rounds: int
    """Rounds that count."""


def hardware_words(machine: Machine) -> str:
    """The processor in words: ``AMD EPYC, 2 cores, 24.0 GiB``."""
    memory = "" if machine.memory_gib is None else f", {machine.memory_gib} GiB"
    return f"{machine.processor}, {machine.cores} cores{memory}"


def speed_rows(rows: Sequence[BenchRow]) -> list[tuple[object, ...]]:
    """Cells in the order of ``CASE`` and ``SPEED``."""
    return [(*_case(row), *_speed(row)) for row in rows]


def bundle_rows(rows: Sequence[BenchRow]) -> list[tuple[object, ...]]:
    """Each bundle once, in the order of its name and ``BUNDLE``; None is unknown."""
    return list(dict.fromkeys((row.bundle, *_of_bundle(row)) for row in rows))


def stage_columns(rows: Sequence[BenchRow]) -> tuple[str, ...]:
    """Headings of the table of stages: every stage of any bundle."""
    stages = dict.fromkeys(stage.stage for row in rows for stage in row.stages)
    return (*CASE, *stages)


def stage_rows(rows: Sequence[BenchRow]) -> list[tuple[object, ...]]:
    """Median milliseconds of each stage, in the order of ``stage_columns``."""
    stages = stage_columns(rows)[3:]
    return [(*_case(row), *(_median(row.stages, stage) for stage in stages)) for row in rows]


def markdown_from_rows(rows: Sequence[BenchRow], conditions: Conditions) -> str:
    """Write both tables and what they were measured on, ready for a README."""
    columns: tuple[str, ...] = (*CASE, *SPEED, *BUNDLE)
    main: list[tuple[object, ...]] = [(*_case(row), *_speed(row), *_of_bundle(row)) for row in rows]
    if all(cells[-1] is None for cells in main):  # no empty column of GPU memory
        columns, main = columns[:-1], [cells[:-1] for cells in main]
    versions = ", ".join(f"{name} {version}" for name, version in conditions.versions.items())
    place = "; ".join((*conditions.gpus, conditions.processor))
    measured = (
        f"`samforge bench`, {conditions.date}: {place}; {versions}. Input: {conditions.input}. "
        f"{conditions.rounds} rounds after {conditions.warm_up} of warm-up, bundles in turn."
    )
    lines = [
        *_table(columns, main),
        "",
        "Median milliseconds by stage; `text` runs once for a phrase and is not in the total:",
        "",
        *_table(stage_columns(rows), stage_rows(rows)),
        "",
        measured,
    ]
    return "\n".join(lines)


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    def line(cells: Sequence[object]) -> str:
        words = ("–" if cell is None else str(cell).replace("|", "\\|") for cell in cells)
        return f"| {' | '.join(words)} |"

    rule = ("---" if column in ("bundle", "target", "precision") else "--:" for column in columns)
    return [line(columns), f"|{'|'.join(rule)}|", *(line(row) for row in rows)]


def _case(row: BenchRow) -> tuple[object, ...]:
    return row.bundle, row.batch, row.prompts


def _speed(row: BenchRow) -> tuple[object, ...]:
    total = row.total
    times = (total.median_ms, total.mean_ms, total.p95_ms, total.p99_ms)
    return (*map(_ms, times), f"{row.images_per_second:.2f}", f"{row.speed_up:.2f}x")


def _of_bundle(row: BenchRow) -> tuple[object, ...]:
    weight = row.weight
    return (
        row.target,
        row.precision,
        f"{row.size_bytes / _MIB:.1f}",
        None if weight is None else f"{weight.resident_bytes / _MIB:.0f}",
        None if weight is None or weight.gpu_bytes is None else f"{weight.gpu_bytes / _MIB:.0f}",
    )


def _median(stages: Sequence[StageLatency], name: str) -> str | None:
    return next((_ms(one.latency.median_ms) for one in stages if one.stage == name), None)


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.{1 if milliseconds >= 10 else 2}f}"
