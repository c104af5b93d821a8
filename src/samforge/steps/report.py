"""What the steps left behind -> the bundle's report, one HTML page."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from samforge.core.manifest import Manifest, StepResult
from samforge.core.structure import value_from_json
from samforge.measure.gates import GATES as PREDICTION_GATES
from samforge.report import (
    EngineRow,
    FusionRow,
    GateRow,
    GroupRow,
    LayerRow,
    PartRow,
    ReportData,
    write_report,
)
from samforge.steps.assets import LICENSE_NAME
from samforge.steps.context import BuildContext
from samforge.steps.pictures import FOLDER, pictures_from_folder
from samforge.steps.verify import REPORT, Verified

PAGE = "report/report.html"

Reached = Callable[[StepResult], float]


def report_of(context: BuildContext, manifest: Manifest) -> str:
    """Write the page from the manifest and what the steps wrote.

    Returns:
        The file, relative to the staging folder.
    """
    verified = _verified(context.root / REPORT)
    measured = None if verified is None else verified.measured
    labelled = verified is not None and verified.labelled
    data = ReportData(
        model=manifest.model,
        family=manifest.family,
        reference=manifest.reference,
        target=manifest.target,
        precision=context.recipe.precision,
        image_size=manifest.image.size,
        created=manifest.created,
        samforge=manifest.samforge,
        steps=manifest.steps,
        gates=tuple(gate_rows(manifest.steps)),
        parts=tuple(_parts(context, manifest)),
        versions=manifest.versions,
        weights_license=manifest.weights_license,
        license_text=context.path(LICENSE_NAME).read_text(encoding="utf-8"),
        random_weights=context.recipe.random_weights,
        fidelity=None if measured is None else measured.fidelity,
        fidelity_data="" if verified is None else verified.verdict.in_words(),
        accuracy=measured if labelled else None,
        reference_name="fp32 in PyTorch",
        reference_accuracy=verified.reference if verified is not None and labelled else None,
        layers=tuple(_layers(context)),
        groups=tuple(_groups(context)),
        fusions=tuple(_fusions(context)),
        engines=tuple(engine_rows(_reports(context, "engine.json"))),
        overlays=pictures_from_folder(context.root / FOLDER),
        prompts=context.recipe.calibration.prompts,
        recipe=manifest.recipe,
        notes=tuple(dict.fromkeys(note for step in manifest.steps for note in step.notes)),
    )
    write_report(data, context.path(PAGE))
    return PAGE


def _reached(figure: str, step: StepResult, *, at_least: bool) -> float:
    return _worst(step, figure, min if at_least else max)


GATES: dict[str, tuple[str, bool, Reached]] = {
    "export_max_abs": (
        "exported part against eager, largest difference",
        False,
        lambda step: _worst(step, "gated", max),
    ),
    "fuse_max_abs": (
        "fused part against eager, largest difference",
        False,
        lambda step: _worst(step, "gated", max),
    ),
    "onnx_max_abs": (
        "ONNX graph against eager, largest difference",
        False,
        lambda step: _worst(step, "gated", max),
    ),
    **{
        name: (gate.words, gate.at_least, partial(_reached, name, at_least=gate.at_least))
        for name, gate in PREDICTION_GATES.items()
    },
}
"""What each gate limits, whether it is a floor, and how to find what was reached."""


def gate_rows(steps: tuple[StepResult, ...]) -> Iterator[GateRow]:
    """One row a gate: the step that came closest to its limit."""
    for gate, (name, at_least, reached) in GATES.items():
        held = [(reached(step), step) for step in steps if gate in step.gates]
        if held:
            choose = min if at_least else max
            figure, step = choose(held, key=lambda one: one[0])
            yield GateRow(
                name=name,
                limit=step.gates[gate],
                reached=figure,
                at_least=at_least,
                where=step.part or "",
                interval=_interval(step, gate),
            )


def _interval(step: StepResult, gate: str) -> tuple[float, float] | None:
    """The figure's interval; None where it has none, as of a worst picture."""
    for row in step.fidelity:
        if gate in row.get("intervals", {}):
            low, high = map(float, row["intervals"][gate])
            return (low, high) if low < high else None
    return None


def _worst(step: StepResult, figure: str, choose: Callable[[list[float]], float]) -> float:
    return choose([float(row[figure]) for row in step.fidelity if row.get(figure) is not None])


def _parts(context: BuildContext, manifest: Manifest) -> Iterator[PartRow]:
    for name, entry in manifest.parts.items():
        files = (entry.artifact, *entry.side_files)
        exported = context.root / context.exported(name)
        yield PartRow(
            name=name,
            artifact=entry.artifact,
            bytes=sum(context.path(file).stat().st_size for file in files),
            reference_bytes=exported.stat().st_size if exported.is_file() else None,
            precisions=_precisions(manifest, name),
        )


def _precisions(manifest: Manifest, part: str) -> dict[str, int] | None:
    """Layers that multiply integers, as they were read back from what the runtime runs."""
    rows = [row for step in manifest.steps if step.part == part for row in step.fidelity]
    counts = [row["integer_layers"] for row in rows if "integer_layers" in row]
    return {"int8": counts[0]} if counts else None


def _reports(context: BuildContext, file: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for part in context.parts:
        path = context.root / "report" / part / file
        if path.is_file():
            yield part, json.loads(path.read_text(encoding="utf-8"))


def engine_rows(reports: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[EngineRow]:
    """One row a part from what the engine step wrote, ``report/PART/engine.json``."""
    for part, report in reports:
        found = report["computation"] or {}
        yield EngineRow(
            part=part,
            form=report["form"],
            build_s=report["seconds"],
            bytes=report["bytes"],
            products=found.get("gemms", {}),
            convolutions=found.get("convolutions", {}),
            attentions=found.get("attentions"),
            source=found.get("source", ""),
            version=report["version"],
        )


def _fusions(context: BuildContext) -> Iterator[FusionRow]:
    for part, report in _reports(context, "fusions.json"):
        for row in report["fusions"]:
            if row["fired"] or row["left"]:
                yield FusionRow(
                    part=part, name=row["name"], fired=row["fired"], left=tuple(row["left"])
                )


def _groups(context: BuildContext) -> Iterator[GroupRow]:
    for part, report in _reports(context, "quantization.json"):
        for row in report["report"]["groups"]:
            yield value_from_json(GroupRow, {"part": part, **row})


def _layers(context: BuildContext) -> Iterator[LayerRow]:
    for part, report in _reports(context, "quantization.json"):
        for row in report["layers"]:
            kept = {group["group"] for group in report["report"]["groups"] if group["kept"]}
            yield LayerRow(
                part=part,
                path=row["path"],
                sqnr_db=float(row["sqnr_db"]),
                kept=row["group"] in kept,
            )


def _verified(path: Path) -> Verified | None:
    if not path.is_file():
        return None
    table = json.loads(path.read_text(encoding="utf-8"))
    return value_from_json(Verified, table) if "measured" in table else None
