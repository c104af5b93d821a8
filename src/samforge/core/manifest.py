"""What a bundle says about itself: parts, file hashes, origin, and what was measured."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from samforge.core.errors import DamagedBundle, ForeignBundle, SettingError
from samforge.core.images import ImageSpec
from samforge.core.reference import REFERENCES
from samforge.core.session import PartSpec
from samforge.core.strict_json import StrictJsonError, strict_json
from samforge.core.structure import Json, StructureError, json_from_value, value_from_json
from samforge.core.targets import TARGET_NAMES, TARGETS

SCHEMA_VERSION = 3
"""Version of the manifest's structure; a reader refuses every other one."""

BEFORE_REFERENCES = 2
"""Last version without ``reference``: its bundles compute what transformers does."""

MANIFEST_NAME = "manifest.json"
"""The manifest's file name in a bundle."""

MOST_BYTES = 16 * 2**20
"""Size up to which a manifest is read; those of full-size bundles have some 100 KiB."""
MOST_CONTEXT = 2**16
"""Longest phrase in tokens that a manifest may ask for."""


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

    def __post_init__(self) -> None:
        if not 1 <= self.context <= MOST_CONTEXT:
            raise SettingError(f"text.context wants 1 to {MOST_CONTEXT}, got {self.context}.")
        if self.pad_id < 0:
            raise SettingError(f"text.pad_id wants a number from 0 up, got {self.pad_id}.")


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
    digest: str = ""
    """SHA-256 of all the rest in its canonical form; ``sealed`` fills it in."""


PROOF_NAME = "verify/proof.npz"
"""Where a bundle for other machines keeps what fp32 makes of its inputs."""
PICTURES_NAME = "verify/pictures.npz"
"""Where a bundle keeps pictures, and what fp32 finds in them."""
TRACKS_NAME = "verify/tracks.json"
"""Where a bundle with a tracker keeps clicks on these pictures, and what fp32 answers."""

FOUND_ALIKE = {"mask_iou", "feature_cosine"}
"""Gates on what the finished parts find or compute."""

EQUAL = {"export_max_abs", "onnx_max_abs"}
"""Gates on every tensor of a part."""


EVIDENCE = ("images", "questions", "objects", "present", "absent", "made_up")
"""Figures that say what the gates on predictions rest on."""


def evidence_of(manifest: Manifest) -> dict[str, Any] | None:
    """What the gates on predictions rest on; None where none were asked.

    Returns:
        Counts by the names of ``EVIDENCE``, the ``intervals`` of the figures, and whether it is
        ``weak_evidence``.
    """
    for step in manifest.steps:
        for row in step.fidelity:
            if "weak_evidence" in row:
                named = (*EVIDENCE, "intervals", "weak_evidence")
                return {name: row[name] for name in named if name in row}
    return None


def evidence_in_words(manifest: Manifest) -> str:
    """The same for people; empty where no gates on predictions were asked."""
    found = evidence_of(manifest)
    if found is None:
        return ""
    weak = "WEAK EVIDENCE: " if found["weak_evidence"] else ""
    images, questions, objects, present, absent = (found.get(name, 0) for name in EVIDENCE[:5])
    return (
        f"{weak}{images} pictures, {questions} questions, {objects} objects, {present} phrases "
        f"present and {absent} absent"
    )


def verified(manifest: Manifest) -> bool:
    """Whether what runs was held to fp32: where it was built, or later by ``samforge verify``."""
    exact = manifest.recipe.get("precision", "fp32") == "fp32"
    # In fp32 tensor by tensor, where what was compared is what runs.
    alike = FOUND_ALIKE | (EQUAL if exact and not TARGETS[manifest.target].elsewhere else set())
    return any(alike & set(step.gates) for step in manifest.steps)


def digest_of(table: Mapping[str, Json]) -> str:
    """SHA-256 of a manifest's canonical form: all its keys but ``digest``.

    The form is JSON in ASCII with sorted keys and no spaces, so whoever wants to pin a bundle can
    compute it with any JSON library whose floats are the shortest that read back equal.
    """
    content = {key: value for key, value in table.items() if key != "digest"}
    text = json.dumps(
        content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()


def sealed(manifest: Manifest) -> Manifest:
    """The manifest with its own digest in it."""
    return replace(manifest, digest=digest_of(_table(manifest)))


def manifest_text(manifest: Manifest) -> str:
    """What stands in ``manifest.json``: sealed, indented, keys in the order of the class.

    Raises:
        SettingError: A text in it has no UTF-8 form, as names of files can be.
    """
    text = _written(_table(sealed(manifest)))
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SettingError(
            f"{error.object[max(0, error.start - 40) : error.end]!a} cannot stand in a manifest: "
            "it is not UTF-8. Rename the file or folder."
        ) from error
    return text


def manifest_from_text(text: str, *, place: str) -> Manifest:
    """Read a manifest and check all that can be checked without the files.

    Args:
        text: Content of ``manifest.json``.
        place: The bundle's folder, for messages.

    Raises:
        ForeignBundle: It is not a manifest of samforge, or one of another schema version.
        DamagedBundle: It is not as samforge wrote it, to the last byte: keys are missing, unknown,
            given twice or of another type, a number or the depth is out of range, a path is not
            usable, or the digest is that of another text.
    """

    def unusable(problem: object) -> DamagedBundle:
        return DamagedBundle(f"{place}/{MANIFEST_NAME} is not usable: {problem} {what_to_do()}")

    if len(text) > MOST_BYTES:
        raise unusable(f"it has {len(text)} characters, and at most {MOST_BYTES} are read.")
    try:
        table = strict_json(text)
    except StrictJsonError as error:
        raise unusable(f"{error}.") from error
    _check_schema(table, place)
    try:
        manifest = value_from_json(Manifest, table)
    except (StructureError, SettingError) as error:
        raise unusable(error) from error
    if problem := next(_problems(manifest), None):
        raise unusable(problem)
    # Last, because any of the others says more of what happened to the file.
    _check_digest(table, text, place)
    return manifest


def _table(manifest: Manifest) -> dict[str, Json]:
    table = json_from_value(manifest)
    assert isinstance(table, dict)  # noqa: S101  # a dataclass always becomes a table
    return table


def _written(table: Mapping[str, Json]) -> str:
    return json.dumps(table, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _check_digest(table: dict[str, Any], text: str, place: str) -> None:
    stated = table.get("digest")
    found = digest_of(table)
    if stated != found:
        raise DamagedBundle(
            f"{place}/{MANIFEST_NAME} was changed: its digest is {stated!r:.70}, and what it says "
            f"has {found}. {what_to_do()}"
        )
    # Spaces, 1e-05 for 1E-05 and escapes say the same in other bytes. None of them is ours.
    if text != _written(table):
        raise DamagedBundle(
            f"{place}/{MANIFEST_NAME} was changed: it says the same in another form than samforge "
            f"writes. {what_to_do()}"
        )


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


def _problems(manifest: Manifest) -> Iterator[str]:
    """What fits the structure and still cannot be."""
    if manifest.target not in TARGETS:
        yield f"its target is {manifest.target!r}, and bundles are for {', '.join(TARGET_NAMES)}."
    if manifest.reference not in REFERENCES:
        yield (
            f"the reference is {manifest.reference!r}, and there are {' and '.join(REFERENCES)}."
        )
    for path, entry in manifest.files.items():
        yield from _file_problems(path, entry)
    for name, path in _uses(manifest):
        if path not in manifest.files:
            yield f"{name} needs {path!r}, which is not among its files."
    for name, part in manifest.parts.items():
        if part.spec.name != name:
            yield f"the part {name!r} calls itself {part.spec.name!r}."
    yield from _gate_problems("its gates", manifest.gates)
    for step in manifest.steps:
        yield from _gate_problems(f"the gates of {step.name}", step.gates)


def _file_problems(path: str, entry: FileEntry) -> Iterator[str]:
    if problem := check_relative(path):
        yield f"the path {path!r} {problem}."
    if path == MANIFEST_NAME:
        yield "it lists itself among its files."
    if not re.fullmatch("[0-9a-f]{64}", entry.sha256) or entry.bytes < 0:
        yield f"the hash or size of {path} is not one."


def _gate_problems(place: str, gates: Mapping[str, float]) -> Iterator[str]:
    for gate, limit in gates.items():
        if not math.isfinite(limit):
            yield f"{gate} in {place} is no finite number."


def _uses(manifest: Manifest) -> list[tuple[str, str]]:
    uses = [
        (f"part {name}", path)
        for name, part in manifest.parts.items()
        for path in (part.artifact, *part.side_files)
    ]
    if manifest.text is not None:
        uses.append(("text", manifest.text.tokenizer))
    return uses
