"""Top of the report: what it is, whether it holds, and the figures that matter most."""

from __future__ import annotations

from datetime import UTC, datetime

from samforge.core.markup import Markup, tag
from samforge.core.reference import REFERENCE_WORDS
from samforge.report.data import ReportData
from samforge.report.tables import mebibytes


def header(data: ReportData) -> Markup:
    """What it is, whether it holds, and the figures that matter most."""
    held = len([gate for gate in data.gates if gate.holds])
    verdict = "Every gate held" if data.holds else "A gate failed: nothing was published"
    notes = list(data.notes)
    if data.random_weights:
        notes.insert(0, "The weights are random: size and speed mean something, masks do not.")
    return tag(
        "header",
        tag("p", "samforge report", class_="eyebrow"),
        tag("h1", f"{data.model}, {data.precision} for {data.target}"),
        tag(
            "p",
            f"{data.family} at {data.image_size} px, held to {REFERENCE_WORDS[data.reference]}, "
            f"built {_date(data.created)}",
            class_="lead",
        ),
        tag(
            "p",
            f"{'✓' if data.holds else '✗'} {verdict} ({held} of {len(data.gates)})",
            class_=f"verdict {'good' if data.holds else 'bad'}",
        )
        if data.gates
        else None,
        [tag("p", note, class_="note") for note in notes],
        _tiles(data),
    )


def _date(created: str) -> str:
    """A manifest's date without seconds; another text as it is."""
    try:
        return f"{datetime.fromisoformat(created).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return created


def _tiles(data: ReportData) -> Markup:
    size = sum(part.bytes for part in data.parts)
    before = [part.reference_bytes for part in data.parts]
    known = sum(one for one in before if one is not None) if None not in before else 0
    tiles = [
        _tile("Size", f"{mebibytes(size)} MiB", f"{size / known:.2f} of fp32" if known else "")
    ]
    if data.fidelity is not None and data.fidelity.mask_iou is not None:
        same, objects = data.fidelity.pairs, data.fidelity.reference_objects
        hint = f"{same} of {objects} objects of fp32 found"
        tiles.append(_tile("Mask IoU with fp32", f"{data.fidelity.mask_iou:.4f}", hint))
    mine, theirs = data.accuracy, data.reference_accuracy
    if mine is not None and mine.cgf1 is not None:
        drop = "" if theirs is None or theirs.cgf1 is None else f"fp32 {theirs.cgf1.cgf1:.4f}"
        tiles.append(_tile("cgF1", f"{mine.cgf1.cgf1:.4f}", drop))
    if mine is not None:
        hint = ""
        if theirs is not None:
            hint = f"{data.reference_name} in the same run: {theirs.image_ms:.0f} ms"
        tiles.append(_tile("Time an image", f"{mine.image_ms:.0f} ms", hint))
    return tag("dl", tiles, class_="tiles")


def _tile(name: str, value: str, hint: str) -> Markup:
    return tag(
        "div",
        tag("dt", name),
        tag("dd", value, tag("small", hint) if hint else None),
        class_="tile",
    )
