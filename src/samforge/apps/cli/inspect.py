"""``samforge inspect``: what is inside a bundle, an ONNX file or an exported program."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from samforge.apps.cli.output import (
    JsonOption,
    print_json,
    print_line,
    print_note,
    print_table,
    shown_path,
)
from samforge.apps.cli.places import DigestOption
from samforge.apps.cli.steps import print_accounts, print_steps
from samforge.core.errors import SettingError
from samforge.core.files import size_text
from samforge.core.reference import REFERENCE_WORDS
from samforge.core.targets import TARGETS

if TYPE_CHECKING:
    from samforge.report import FusionRow
    from samforge.transform import ExternalFile, GraphSummary
    from samforge.workflows.inspect import BundleReport, QuantizedPart

MOST_OPERATORS = 25
"""Rows of the operator table for people; ``--json`` has them all."""


def inspect(
    path: Annotated[
        Path, typer.Argument(metavar="BUNDLE_OR_FILE", help="A bundle's folder, an .onnx or .pt2.")
    ],
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            help="For a .pt2: also show which fusions would fire for this runtime, "
            f"one of {', '.join(TARGETS)}.",
        ),
    ] = None,
    digest: DigestOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what is inside a bundle or a graph file, and whether a bundle is intact."""
    if target is not None and path.suffix != ".pt2":
        raise SettingError(
            f"--target shows fusions of a .pt2, got {path}. "
            "What a bundle's fusions did is shown without it."
        )
    if digest is not None and not path.is_dir():
        raise SettingError(f"--digest is that of a bundle, and {path} is no folder.")
    if path.is_dir():
        from samforge.workflows.inspect import inspect as inspected

        report = inspected(path, digest=digest)
        if as_json:
            print_json("inspect", report.payload(), ok=report.problem is None)
        else:
            _print_bundle(report)
        if report.problem is not None:
            raise typer.Exit(report.problem.exit_code)
        return
    from samforge.transform import summary_from_file

    summary = summary_from_file(path)
    payload = {"file": path, "bytes": path.stat().st_size, "graph": summary}
    fusions: tuple[FusionRow, ...] = ()
    if target is not None:
        from samforge.workflows.inspect import fusions_of_program

        fusions = fusions_of_program(path, target)
        payload["fusions"] = fusions
    if as_json:
        print_json("inspect", payload)
    else:
        _print_graph(path, summary)
        _print_fusions(fusions, every=True)


def _print_bundle(report: BundleReport) -> None:
    from samforge.core.manifest import evidence_in_words

    manifest = report.manifest
    recipe = manifest.recipe
    size = sum(entry.bytes for entry in manifest.files.values())
    text = manifest.text
    rows = [
        ("folder", shown_path(report.root)),
        ("model", f"{manifest.model} ({manifest.family})"),
        ("reference", REFERENCE_WORDS.get(manifest.reference, manifest.reference)),
        ("weights", _weights_in_words(report)),
        ("licence of the weights", report.license_line),
        ("target", manifest.target),
        ("precision", recipe.get("precision")),
        ("image size", f"{manifest.image.size} x {manifest.image.size}"),
        ("text", None if text is None else f"{text.context} tokens, {text.tokenizer}"),
        ("built", f"{manifest.created} by samforge {manifest.samforge}"),
        ("with", ", ".join(f"{k} {v}" for k, v in manifest.versions.items() if k != "samforge")),
        ("gates held", ", ".join(f"{k} {v:g}" for k, v in manifest.gates.items())),
        ("held on", evidence_in_words(manifest) or None),
        ("files", f"{len(manifest.files)}, {size_text(size)}"),
        ("intact", "yes, every hash is right" if report.problem is None else "NO"),
    ]
    if report.strangers:
        rows.append(("not its own", f"{', '.join(report.strangers)}: not used"))
    if report.linked_out:
        rows.append(("links to outside", f"{', '.join(report.linked_out)}: the content is right"))
    print_table("Bundle", ("what", "value"), rows)
    print_line(f"Digest: {manifest.digest}")  # in one line, to be copied
    files = manifest.files
    print_table(
        "Parts",
        ("part", "file", "size", "layers in 8 bits", "of its products"),
        [
            (
                name,
                entry.artifact,
                size_text(sum(files[f].bytes for f in (entry.artifact, *entry.side_files))),
                *_in_eight_bits(report.quantized.get(name)),
            )
            for name, entry in manifest.parts.items()
        ],
        numbers=("size", "layers in 8 bits", "of its products"),
    )
    for name, one in report.quantized.items():
        if one.kept:
            print_line(f"{name} keeps in float to hold its gates: {', '.join(one.kept)}.")
    tensors = [
        (name, kind, one.name, one.dtype, ", ".join(str(axis) for axis in one.shape))
        for name, entry in manifest.parts.items()
        for kind, ones in (("in", entry.spec.inputs), ("out", entry.spec.outputs))
        for one in ones
    ]
    print_table("Inputs and outputs", ("part", "", "name", "type", "shape"), tensors)
    _print_fusions(report.fusions)
    print_accounts(manifest.steps)
    print_steps(manifest.steps)
    if report.problem is not None:
        print_note(f"{type(report.problem).__name__}: {report.problem}", style="red")


def _in_eight_bits(part: QuantizedPart | None) -> tuple[str | None, str | None]:
    return (None, None) if part is None else (str(part.layers), f"{part.share:.1%}")


def _print_fusions(fusions: Sequence[FusionRow], *, every: bool = False) -> None:
    """Print what fired how often, and each kind of candidate that stayed, with its reason."""
    rows = [
        (one.part, one.name, one.fired, _reasons(one.left))
        for one in fusions
        if every or one.fired or one.left
    ]
    if rows:
        print_table(
            "Fusions", ("part", "fusion", "fired", "left, and why"), rows, numbers=("fired",)
        )


def _reasons(left: Sequence[str]) -> tuple[str, ...]:
    """Reasons of what was left, the most frequent first; a place stands before each colon."""
    counts = Counter(one.partition(": ")[2] or one for one in left)
    return tuple(f"{count} x {reason}" for reason, count in counts.most_common())


def _weights_in_words(report: BundleReport) -> str:
    if report.manifest.recipe.get("random_weights"):
        return "random numbers: it finds nothing"
    digest = report.manifest.parents.get("weights", "unknown")
    return digest[:23] + "…" if len(digest) > 23 else digest


def _print_graph(path: Path, summary: GraphSummary) -> None:
    rows = [("file", path), ("kind", summary.kind), *summary.versions.items()]
    rows.append(("size", size_text(path.stat().st_size)))
    print_table("Graph", ("what", "value"), rows)
    tensors = [("in", one) for one in summary.inputs] + [("out", o) for o in summary.outputs]
    print_table(
        "Inputs and outputs",
        ("", "name", "type", "shape"),
        [
            (kind, one.name, one.dtype, ", ".join(str(axis) for axis in one.shape))
            for kind, one in tensors
        ],
    )
    print_table(
        "Weights",
        ("type", "tensors", "size"),
        [(one.dtype, one.tensors, size_text(one.bytes)) for one in summary.weights],
        numbers=("tensors", "size"),
    )
    if summary.external:
        print_table(
            "External data", ("file", "size"), [(one.name, _state(one)) for one in summary.external]
        )
    _print_operators(summary)


def _print_operators(summary: GraphSummary) -> None:
    counted = list(summary.operators.items())
    print_table(
        f"Operators: {len(counted)} kinds, {sum(summary.operators.values())} in all",
        ("operator", "count"),
        counted[:MOST_OPERATORS],
        numbers=("count",),
    )
    rest = len(counted) - MOST_OPERATORS
    if rest > 0:
        print_line(f"… and {rest} rarer kinds; --json lists them.")
    for hazard in summary.hazards:
        print_line(f"Hazard: {hazard}", style="yellow")
    for finding in summary.findings:
        print_line(
            f"Finding {finding.rule} ({finding.severity}): {finding.place}.",
            style="red" if finding.severity == "wrong" else "yellow",
        )
        print_line(f"  {finding.explanation} ({finding.reference})")
    if summary.kind == "ONNX" and not summary.hazards and not summary.findings:
        print_line("No operator that TensorRT and others stumble over.", style="green")


def _state(file: ExternalFile) -> str:
    if not file.inside:
        return "outside the graph's folder: runtimes refuse it"
    return "missing" if file.bytes is None else size_text(file.bytes)
