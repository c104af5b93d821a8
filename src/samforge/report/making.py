"""Sections of the report that say how it was made; nothing where their data is missing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from samforge.core.markup import Markup, folded, section, tag
from samforge.core.structure import json_from_value
from samforge.report.data import ReportData, account_rows
from samforge.report.tables import Cell, decibel, mebibytes, small, table


def steps(data: ReportData) -> Markup | None:
    """What was done, what it took, and how faithful each result is."""
    if not data.steps:
        return None
    rows = [
        (
            Cell(content=step.name, look="word"),
            step.part,
            f"{step.seconds:.1f}",
            mebibytes(step.bytes),
            _worst(step.fidelity, "gated", largest=True),
            _worst(step.fidelity, "sqnr_db", largest=False),
            None if step.peak_gib is None else f"{step.peak_gib:.1f}",
            "yes" if step.resumed else "no",
        )
        for step in data.steps
    ]
    columns = (
        *("step", "part", "time, s#", "size, MiB#", "largest difference#", "SQNR, dB#"),
        *("peak, GiB#", "resumed"),
    )
    total = sum(step.seconds for step in data.steps)
    hint = (
        f"{len(rows)} steps in {total:.0f} s. Differences are the worst over outputs and sizes, "
        "relative where values exceed 1, as the gates take them."
    )
    return section("Steps", hint, table(columns, rows))


def _worst(rows: Iterable[Mapping[str, object]], key: str, *, largest: bool) -> str | None:
    # A manifest keeps infinity as a string.
    values = [float(str(row[key])) for row in rows if row.get(key) is not None]
    if not values:
        return None
    return small(max(values)) if largest else decibel(min(values))


def parts(data: ReportData) -> Markup | None:
    """The files and what they take."""
    if not data.parts:
        return None
    rows = [
        (
            part.name,
            Cell(content=part.artifact, look="path"),
            mebibytes(part.bytes),
            None if part.reference_bytes is None else mebibytes(part.reference_bytes),
            f"{part.bytes / part.reference_bytes:.2f}" if part.reference_bytes else None,
            _counts(part.precisions or {}),
        )
        for part in data.parts
    ]
    columns = ("part", "file", "size, MiB#", "fp32, MiB#", "ratio#", "operators")
    return section("Parts", "", table(columns, rows))


def engines(data: ReportData) -> Markup | None:
    """What each engine computes, and where that was read."""
    if not data.engines:
        return None
    rows = [
        (
            row.part,
            Cell(content=row.form, look="word"),
            _counts(row.products),
            _counts(row.convolutions),
            None if row.attentions is None else str(row.attentions),
            mebibytes(row.bytes),
            f"{row.build_s:.1f}",
        )
        for row in data.engines
    ]
    columns = ("part", "attention", "products", "convolutions", "fused#", "size, MiB#", "build, s#")
    sources = dict.fromkeys(row.source for row in data.engines if row.source)
    versions = dict.fromkeys(row.version for row in data.engines if row.version)
    hint = f"Built by {data.target} {', '.join(versions)}."
    if sources:
        hint += f" Counts are held against the graph's plan; read from {' and '.join(sources)}."
    return section("Engines", hint, table(columns, rows))


def _counts(formats: Mapping[str, int]) -> str | None:
    return ", ".join(f"{count} {name}" for name, count in formats.items()) or None


def fusions(data: ReportData) -> Markup | None:
    """What the fusions did, and what they left."""
    if not data.fusions:
        return None
    rows = [
        (row.part, Cell(content=row.name, look="word"), str(row.fired), str(len(row.left)))
        for row in data.fusions
    ]
    left = [
        tag("li", tag("code", f"{row.part}, {row.name}: {why}"))
        for row in data.fusions
        for why in row.left
    ]
    return section(
        "Fusions",
        "Places of the graph that were rewritten, each proven equal.",
        table(("part", "fusion", "fired#", "left#"), rows),
        folded(f"{len(left)} candidates left, and why", tag("ul", left)) if left else None,
    )


def accounts(data: ReportData) -> Markup | None:
    """Where every tensor of the checkpoint went."""
    rows = [
        (row.part, Cell(content=row.step, look="word"), str(row.weights), row.words)
        for row in account_rows(data.steps)
    ]
    if not rows:
        return None
    return section(
        "Weights",
        "Every tensor of the checkpoint, looked up in what each step made of it.",
        table(("part", "step", "tensors#", "found as"), rows),
    )


def origin(data: ReportData) -> Markup:
    """Versions, the recipe and the licence."""
    versions = [(name, Cell(content=number, look="path")) for name, number in data.versions.items()]
    recipe = None
    if data.recipe is not None:
        text = json.dumps(json_from_value(data.recipe), indent=2, ensure_ascii=False)
        recipe = folded("Recipe", tag("pre", text))
    license_ = (
        f"The weights are under their own licence: {data.weights_license}. Read it before use."
    )
    return section(
        "Origin",
        "",
        table(("made with", "version"), versions),
        recipe,
        tag("h3", "Licence of the weights"),
        tag("p", license_),
        folded("Text of the licence", tag("pre", data.license_text)) if data.license_text else None,
    )
