"""What a bundle says about itself: parts, file hashes, origin, and what was measured."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from samforge.core.errors import DamagedBundle, ForeignBundle, SettingError
from samforge.core.images import ImageSpec
from samforge.core.reference import REFERENCES
from samforge.core.session import PartSpec
from samforge.core.structure import StructureError, value_from_json

SCHEMA_VERSION = 3
"""Version of the manifest's structure; a reader refuses every other one."""

BEFORE_REFERENCES = 2
"""Last version without ``reference``: its bundles compute what transformers does."""

MANIFEST_NAME = "manifest.json"
"""The manifest's file name in a bundle."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """One file of a bundle, as it was when the bundle was published."""

    sha256: str
    """Hash of its bytes, 64 hexadecimal digits."""
    bytes: int
    """Its size."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartEntry:
    """One part and the files that run it."""

    spec: PartSpec
    """Inputs and outputs."""
    artifact: str
    """The file to load, relative to the bundle."""
    side_files: tuple[str, ...] = ()
    """What the artifact itself refers to, such as external weights; relative to the bundle."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Settings of the runtime that the artifact needs, as its backend names them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextSpec:
    """How phrases become token ids."""

    context: int
    """Tokens of a phrase after padding or truncation."""
    pad_id: int
    """Token that fills up; it is masked, so its value changes nothing."""
    tokenizer: str
    """The tokenizer.json, relative to the bundle."""
    synthetic: bool
    """True when the tokenizer was made up (random weights): phrases then have no meaning."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """What one step of the build took and how faithful its result is."""

    name: str
    """``export``, ``onnx``, …"""
    part: str | None
    """The part it worked on, or None for a step of the whole bundle."""
    seconds: float
    """Wall-clock time, of the run that did the work."""
    bytes: int
    """Size of what it made."""
    peak_gib: float | None
    """Highest memory use of the process meanwhile, or None where it cannot be measured."""
    resumed: bool
    """True when an earlier run's result was taken over."""
    fidelity: tuple[Mapping[str, Any], ...] = ()
    """One table of figures for each tensor or prediction that was compared."""
    gates: Mapping[str, float] = field(default_factory=dict)
    """Limits that held, by their names in the recipe."""
    notes: tuple[str, ...] = ()
    """What a reader has to know: a slower way taken, a check that could not run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """Everything known about a bundle; ``manifest.json`` holds these keys and no others."""

    schema_version: int
    """``SCHEMA_VERSION`` of the writer."""
    samforge: str
    """Version of samforge that built it."""
    created: str
    """When, in UTC: ``2026-01-31T12:00:00+00:00``."""
    family: str
    """Architecture: ``sam3``, ``dinov3``."""
    model: str
    """Name, folder or id of the checkpoint."""
    reference: str
    """Whose computation it is held to: ``meta`` or ``transformers``. It decides how phrases are
    cleaned and how masks are brought to the image's size, too."""
    recipe: Mapping[str, Any]
    """What was asked for, as ``Recipe.to_dict`` gives it."""
    image: ImageSpec
    """Size and normalization of the images."""
    text: TextSpec | None
    """How phrases are tokenized; None for a family without text."""
    target: str
    """Runtime the artifacts are for."""
    parts: Mapping[str, PartEntry]
    """Every part by name."""
    files: Mapping[str, FileEntry]
    """Every file of the bundle but the manifest, by path relative to the bundle."""
    parents: Mapping[str, str]
    """Hashes of what it was made from: checkpoint, configuration, tokenizer."""
    versions: Mapping[str, str]
    """Versions of Python and of the packages that took part."""
    steps: tuple[StepResult, ...]
    """The steps of the build in order."""
    gates: Mapping[str, float]
    """The limits that held."""
    weights_license: str
    """Name of the licence of the weights, or of the file that holds it."""


PROOF_NAME = "verify/proof.npz"
"""Where a bundle for other machines keeps what fp32 makes of its inputs."""

FOUND_ALIKE = {"mask_iou", "feature_cosine"}
"""Gates on what the finished parts find or compute."""


def verified(manifest: Manifest) -> bool:
    """Whether what runs was held to fp32: where it was built, or later by ``samforge verify``."""
    exact = manifest.recipe.get("precision", "fp32") == "fp32"
    if exact and manifest.target in ("onnxruntime", "torch"):
        return True  # tensor by tensor
    return any(FOUND_ALIKE & set(step.gates) for step in manifest.steps)


def manifest_from_text(text: str, *, place: str) -> Manifest:
    """Read a manifest and check all that can be checked without the files.

    Args:
        text: Content of ``manifest.json``.
        place: The bundle's folder, for messages.

    Raises:
        ForeignBundle: It is not a manifest of samforge, or one of another schema version.
        DamagedBundle: Keys are missing, unknown or of another type, or a path is not usable.
    """
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedBundle(
            f"{place}/{MANIFEST_NAME} is not valid JSON: {error}. {what_to_do()}"
        ) from error
    _check_schema(table, place)
    try:
        manifest = value_from_json(Manifest, table)
    except (StructureError, SettingError) as error:
        raise DamagedBundle(
            f"{place}/{MANIFEST_NAME} is not usable: {error} {what_to_do()}"
        ) from error
    if manifest.reference not in REFERENCES:
        raise DamagedBundle(
            f"{place}/{MANIFEST_NAME}: the reference is {manifest.reference!r}, and there are "
            f"{' and '.join(REFERENCES)}. {what_to_do()}"
        )
    _check_paths(manifest, place)
    return manifest


def check_relative(path: str) -> str | None:
    """Say why ``path`` may not stand in a manifest; None if it may.

    Allowed are forward-slash paths that stay inside the bundle on every system.
    """
    if not path or not path.isprintable():
        return "is empty or holds characters that cannot be printed"
    if "\\" in path or ":" in path:
        return "holds a backslash or a colon"
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts:
        return "leaves the bundle"
    if str(pure) != path or path == ".":
        return "is not in its shortest form"
    return None


def what_to_do() -> str:
    """The way out of a damaged bundle."""
    return "Copy the bundle again from where it came, or rebuild it with samforge build."


def _check_schema(table: object, place: str) -> None:
    if not isinstance(table, dict) or "schema_version" not in table or "samforge" not in table:
        raise ForeignBundle(
            f"{place}/{MANIFEST_NAME} is not a samforge manifest: it has no schema_version. "
            "Name a folder that samforge build made."
        )
    version = table["schema_version"]
    if version == BEFORE_REFERENCES and not isinstance(version, bool):
        raise ForeignBundle(
            f"{place} has schema version {version} (samforge {table['samforge']}): it was built "
            "to find what transformers' Sam3Model finds, which is not what Meta's SAM 3 finds. "
            "Build it again; --reference transformers keeps the old behaviour."
        )
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise ForeignBundle(
            f"{place} has schema version {version!r} (samforge {table['samforge']}), and this "
            f"samforge reads {SCHEMA_VERSION}. Install that version, or build it again."
        )


def _check_paths(manifest: Manifest, place: str) -> None:
    def damaged(problem: str) -> DamagedBundle:
        return DamagedBundle(f"{place}/{MANIFEST_NAME}: {problem} {what_to_do()}")

    for path, entry in manifest.files.items():
        if problem := check_relative(path):
            raise damaged(f"the path {path!r} {problem}.")
        if path == MANIFEST_NAME:
            raise damaged("it lists itself among its files.")
        if not re.fullmatch("[0-9a-f]{64}", entry.sha256) or entry.bytes < 0:
            raise damaged(f"the hash or size of {path} is not one.")
    for name, path in _uses(manifest):
        if path not in manifest.files:
            raise damaged(f"{name} needs {path!r}, which is not among its files.")


def _uses(manifest: Manifest) -> list[tuple[str, str]]:
    uses = [
        (f"part {name}", path)
        for name, part in manifest.parts.items()
        for path in (part.artifact, *part.side_files)
    ]
    if manifest.text is not None:
        uses.append(("text", manifest.text.tokenizer))
    return uses
