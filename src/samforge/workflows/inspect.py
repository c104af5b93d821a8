"""Looks into a bundle, a damaged one too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samforge.core.bundle import Bundle, open_bundle
from samforge.core.errors import DamagedBundle
from samforge.core.manifest import (
    MANIFEST_NAME,
    Manifest,
    evidence_of,
    manifest_from_text,
    what_to_do,
)
from samforge.core.strict_json import strict_json
from samforge.report import FusionRow
from samforge.transform import fusions_from_exported


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizedPart:
    """How much of a part computes in 8 bits."""

    layers: int
    """Linears and convolutions that do: those that the runtime was seen to multiply as integers,
    where it was asked."""
    share: float
    """Of the part's multiplications, 0 to 1, without layers that a target's form of the graph takes
    back to float."""
    kept: tuple[str, ...]
    """Groups of layers that stay in float so that gates hold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BundleReport:
    """What a bundle says about itself, and whether it is true."""

    root: Path
    """The folder, absolute."""
    manifest: Manifest
    """Read and checked, but for the files it names."""
    license_line: str
    """First line of the weights' licence."""
    problem: DamagedBundle | None
    """What is wrong with the files; None when every one is as it was built."""
    fusions: tuple[FusionRow, ...] = ()
    """What each fusion did to each part; none where files are damaged."""
    quantized: Mapping[str, QuantizedPart] = field(default_factory=dict)
    """Parts that compute in 8 bits, by name; none where files are damaged."""
    strangers: tuple[str, ...] = ()
    """Files in the folder that are not the bundle's and do no harm."""
    linked_out: tuple[str, ...] = ()
    """Files that are links to somewhere outside, with the right content."""

    def payload(self) -> dict[str, object]:
        """The report for machines."""
        payload: dict[str, object] = {
            "bundle": self.root,
            "digest": self.manifest.digest,
            "intact": self.problem is None,
            "license": self.license_line,
            "manifest": self.manifest,
            "evidence": evidence_of(self.manifest),
            "quantized": self.quantized,
            "fusions": self.fusions,
            "strangers": self.strangers,
            "linked_out": self.linked_out,
        }
        if self.problem is not None:
            payload["error"] = {
                "kind": type(self.problem).__name__,
                "message": str(self.problem),
                "exit_code": self.problem.exit_code,
            }
        return payload


def inspect(path: str | Path, *, digest: str | None = None) -> BundleReport:
    """Read a bundle and hash its files.

    Args:
        path: The bundle's folder.
        digest: The bundle's digest, as a build prints it; None takes any.

    Returns:
        What is in the bundle, and whether it is intact.

    Raises:
        ForeignBundle: It is no bundle.
        DamagedBundle: Its manifest cannot be used; damage of other files is in the report.
    """
    root = Path(path).resolve()
    try:
        bundle = open_bundle(root, digest=digest)
    except DamagedBundle as error:
        text = _text_of(root / MANIFEST_NAME)
        if text is None:
            raise
        # Raises again where the manifest is what is damaged.
        manifest = manifest_from_text(text, place=str(root))
        return BundleReport(root=root, manifest=manifest, license_line="not read", problem=error)
    manifest = bundle.manifest
    name = manifest.weights_license
    license_line = name
    if name in manifest.files:
        lines = bundle.read(name).decode(errors="replace").splitlines()
        license_line = f"{lines[0]} ({name})" if lines else name
    return BundleReport(
        root=root,
        manifest=manifest,
        license_line=license_line,
        problem=None,
        fusions=tuple(
            row
            for part in manifest.parts
            if (file := f"report/{part}/fusions.json") in manifest.files
            for row in _fusions_of(bundle, part, file)
        ),
        quantized=_quantized(bundle),
        strangers=bundle.strangers,
        linked_out=bundle.linked_out,
    )


def fusions_of_program(path: Path, target: str) -> tuple[FusionRow, ...]:
    """Try a target's fusions on an exported program; the file stays as it is.

    Raises:
        SettingError: The target is unknown.
        DamagedBundle: The file cannot be read.
        MissingExtra: torch is not installed.
    """
    return tuple(_fusions(path.stem, fusions_from_exported(path, target)))


def _quantized(bundle: Bundle) -> dict[str, QuantizedPart]:
    """What the steps counted; bundles from before they counted layers have nothing here."""
    rows = [(step.part, row) for step in bundle.manifest.steps for row in step.fidelity]
    try:
        seen = {part: int(row["integer_layers"]) for part, row in rows if "integer_layers" in row}
        done = {part: float(row["recorded_share"]) for part, row in rows if "recorded_share" in row}
        return {
            part: QuantizedPart(
                layers=seen.get(part, int(row["quantized_layers"])),
                share=done.get(part, float(row["quantized_share"])),
                kept=tuple(map(str, row["kept"])),
            )
            for part, row in rows
            if part is not None and "quantized_layers" in row
        }
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedBundle(
            f"The steps in the manifest of {bundle.root} are not what a build writes: {error}. "
            f"{what_to_do()}"
        ) from error


def _fusions_of(bundle: Bundle, part: str, file: str) -> list[FusionRow]:
    try:
        return _fusions(part, strict_json(bundle.read(file).decode())["fusions"])
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedBundle(
            f"{file} in {bundle.root} is not what a build writes: {error}. {what_to_do()}"
        ) from error


def _fusions(part: str, rows: list[dict[str, Any]]) -> list[FusionRow]:
    return [
        FusionRow(part=part, name=row["name"], fired=row["fired"], left=tuple(row["left"]))
        for row in rows
    ]


def _text_of(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
