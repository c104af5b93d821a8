"""Runs a bundle against its own proof, here."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from samforge.assembly import load, session_from_bundle
from samforge.core.bundle import Bundle, open_bundle
from samforge.core.capabilities import BOXES, POINTS
from samforge.core.devices import AUTO, checked_device
from samforge.core.errors import (
    DamagedBundle,
    FidelityError,
    MissingExtra,
    OutputError,
    SettingError,
)
from samforge.core.files import atomic_write_text
from samforge.core.manifest import (
    MANIFEST_NAME,
    TRACKS_NAME,
    StepResult,
    manifest_text,
    sealed,
)
from samforge.core.native import error_of_item, isolated
from samforge.core.recipe import Gates
from samforge.core.session import Session
from samforge.core.structure import StructureError, value_from_json
from samforge.measure import (
    PICTURES_NAME,
    PROOF_NAME,
    ProvenTensor,
    Verdict,
    check_proof,
    check_proof_pictures,
    proof_pictures_from_file,
    proven_tensors,
)
from samforge.measure.proof_tracks import check_proof_tracks, proof_tracks_from_file
from samforge.measure.sums import Evidence
from samforge.measure.tracker_questions import TrackerFidelity

STEP = "verify here"
"""Name of the record in the manifest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What running a bundle showed."""

    bundle: Path
    """Its folder."""
    target: str
    """Runtime."""
    precision: str
    """Number format."""
    processor: str
    """Where it ran, and by which way."""
    seconds: float
    """What loading, running and comparing took."""
    limit: float | None
    """Smallest cosine allowed; None where no part was run on tensors."""
    tensors: tuple[ProvenTensor, ...]
    """Every output of every part against fp32; empty where the bundle carries none."""
    evidence: Evidence | None
    """What the segmenter was asked; None where the bundle carries no pictures."""
    gates: Mapping[str, tuple[float, float]]
    """Figure and limit of each gate on what the segmenter found, clicked on and followed."""
    tracking: TrackerFidelity | None
    """Clicks and tracks against fp32; None where the bundle has no tracker or carries none."""
    tracker_unproven: bool
    """Whether it has a tracker and carries nothing to hold it to, as older ones do."""
    recorded: bool
    """Whether the bundle remembers it; False where it was not to, or cannot be written."""
    digest: str
    """The bundle's digest now: what it remembers is part of it."""


def verify(
    path: str | Path, *, device: str = AUTO, digest: str | None = None, record: bool = True
) -> Verification:
    """Hold a bundle to what fp32 gave when it was built, here, and remember that it held.

    Parts run on the tensors that bundles for other machines carry. Then the segmenter that
    ``samforge.load`` gives on this machine is asked about the pictures that every segmenting
    bundle carries: by its own way, with its resize, its admission and its masks. One with a tracker
    clicks on objects of these pictures, and follows them through a window that moves over one.

    A part that cannot be loaded or run does not end the others: all that fail are named.

    Args:
        path: The bundle's folder.
        device: Where to run, as ``samforge.load`` takes it.
        digest: The bundle's digest, as a build prints it: any other bundle is refused.
        record: Whether the bundle is to remember it. A server leaves what it serves as it is.

    Returns:
        What each part gave, and what the segmenter found, compared with fp32.

    Raises:
        BundleError: It is no bundle, is damaged, holds no proof, is another than the one of the
            digest, or cannot run here.
        MissingExtra: Its runtime is not installed.
        SettingError: It does not run on ``device``.
        FidelityError: What runs here does not compute what fp32 does.
    """
    where = checked_device(device)
    bundle = open_bundle(path, digest=digest)
    manifest = bundle.manifest
    if not {PROOF_NAME, PICTURES_NAME} & set(manifest.files):
        raise DamagedBundle(
            f"{bundle.root} holds no {PICTURES_NAME} and no {PROOF_NAME} to verify it with. Build "
            "it again; samforge compare measures it on data of yours."
        )
    start = time.perf_counter()
    precision = str(manifest.recipe.get("precision", "fp32"))
    gates = _gates(bundle)
    tensors, processor, limit = _parts(bundle, where, precision, gates)
    answers = _pictures(bundle, device, precision, gates)
    verdict, processor = answers.verdict, answers.processor or processor
    seconds = round(time.perf_counter() - start, 3)
    judged = verdict.judged if verdict is not None else ()
    held = {one.gate: one.limit for one in judged if not math.isnan(one.interval.value)}
    held |= answers.limits
    if limit is not None:
        held["feature_cosine"] = limit
    figures = [{"part": one.part, **one.fidelity.to_dict()} for one in tensors]
    figures += answers.figures()
    after = _recorded(bundle, figures, processor, seconds, held) if record else None
    reached = {one.gate: one.interval.value for one in judged}
    if answers.tracking is not None:
        reached |= answers.tracking.measured
    return Verification(
        bundle=bundle.root,
        target=manifest.target,
        precision=precision,
        processor=processor,
        seconds=seconds,
        limit=limit,
        tensors=tensors,
        evidence=None if verdict is None else verdict.evidence,
        gates={gate: (value, held[gate]) for gate, value in reached.items() if gate in held},
        tracking=answers.tracking,
        tracker_unproven=answers.tracking is None and POINTS.among(manifest.parts),
        recorded=after is not None,
        digest=after or bundle.digest,
    )


def _parts(
    bundle: Bundle, device: str | None, precision: str, gates: Gates
) -> tuple[tuple[ProvenTensor, ...], str, float | None]:
    """Run part after part on tensors, where the bundle carries some."""
    if PROOF_NAME not in bundle.manifest.files:
        return (), "", None
    failed: dict[str, Exception] = {}
    sessions: dict[str, Session] = {}
    try:
        for part in bundle.manifest.parts:
            with isolated(failed.__setitem__, part):
                sessions[part] = session_from_bundle(bundle, part, device=device)
        bundle.confirm((PROOF_NAME,))
        tensors = proven_tensors(bundle.path(PROOF_NAME), sessions, failed=failed)
        bundle.confirm((PROOF_NAME,))
        processor = next((session.processor for session in sessions.values()), "")
    finally:
        for session in sessions.values():
            session.close()
    return tensors, processor, _checked(tensors, failed, precision, gates)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Answers:
    """What the segmenter of this machine answered, compared with fp32."""

    verdict: Verdict | None = None
    tracking: TrackerFidelity | None = None
    limits: Mapping[str, float] = field(default_factory=dict)
    """Of the gates on clicks and tracks."""
    processor: str = ""

    def figures(self) -> list[dict[str, Any]]:
        """What the manifest keeps."""
        rows = [] if self.verdict is None else [_figures(self.verdict)]
        if self.tracking is not None:
            rows.append(asdict(self.tracking.clicks))
            rows += [] if self.tracking.tracks is None else [asdict(self.tracking.tracks)]
        return rows


def _pictures(bundle: Bundle, device: str, precision: str, gates: Gates) -> _Answers:
    """Ask the segmenter of this machine, where the bundle carries pictures."""
    if PICTURES_NAME not in bundle.manifest.files:
        return _Answers()
    carried = [name for name in (PICTURES_NAME, TRACKS_NAME) if name in bundle.manifest.files]
    bundle.confirm(carried)
    proof = proof_pictures_from_file(bundle.path(PICTURES_NAME))
    tracks = None
    if TRACKS_NAME in carried:
        pictures = [image.image_rgb for image in proof.images]
        tracks = proof_tracks_from_file(bundle.path(TRACKS_NAME), pictures)
    bundle.confirm(carried)
    tracking: TrackerFidelity | None = None
    limits: Mapping[str, float] = {}
    with load(bundle, device=device) as segmenter:
        verdict = check_proof_pictures(
            proof,
            segmenter,
            boxes=BOXES.among(bundle.manifest.parts),
            precision=precision,
            gates=gates,
        )
        if tracks is not None:
            tracking, limits = check_proof_tracks(
                tracks, segmenter, precision=precision, gates=gates
            )
        return _Answers(
            verdict=verdict, tracking=tracking, limits=limits, processor=segmenter.processor
        )


def _checked(
    tensors: tuple[ProvenTensor, ...], failed: dict[str, Exception], precision: str, gates: Gates
) -> float:
    """Hold the gate, and tell of every part that could not be held to it.

    Raises:
        SamforgeError: Of the kind of the first part that failed, with all of them in its message.
    """
    if not failed:
        return check_proof(tensors, precision, gates)
    told = {part: error_of_item(error) for part, error in failed.items()}
    first = next(iter(told.values()))
    if isinstance(first, MissingExtra):
        raise first
    lines = [f"{part} could not be verified: {error}" for part, error in told.items()]
    try:
        check_proof(tensors, precision, gates)
    except FidelityError as error:
        lines.append(str(error))
    else:
        held = ", ".join(dict.fromkeys(one.part for one in tensors))
        lines.append(f"What could be run holds its gate: {held or 'nothing'}.")
    raise type(first)("\n".join(lines)) from first


def _gates(bundle: Bundle) -> Gates:
    """The gates of its recipe."""
    table = bundle.manifest.recipe.get("gates") or {}
    try:
        return value_from_json(Gates, table, complete=False)
    except (StructureError, SettingError) as error:
        raise DamagedBundle(f"The recipe in {bundle.root} has unusable gates: {error}") from error


def _figures(verdict: Verdict) -> dict[str, Any]:
    """What the manifest keeps of the pictures."""
    figures = {
        one.gate: one.interval.value for one in verdict.judged if not math.isnan(one.interval.value)
    }
    return {**asdict(verdict.evidence), **figures}


def _recorded(
    bundle: Bundle,
    figures: Sequence[Mapping[str, Any]],
    processor: str,
    seconds: float,
    gates: Mapping[str, float],
) -> str | None:
    """Put the result into the manifest, in place of an earlier one.

    Returns:
        The bundle's digest then; None where it cannot be written: the folder is read-only, or the
        manifest is a link into a cache that others share.
    """
    result = StepResult(
        name=STEP,
        part=None,
        seconds=seconds,
        bytes=0,
        peak_gib=None,
        resumed=False,
        fidelity=tuple(dict(one) for one in figures),
        gates=dict(gates),
        notes=(f"Verified on {processor}.",),
    )
    others = (step for step in bundle.manifest.steps if step.name != STEP)
    manifest = sealed(replace(bundle.manifest, steps=(*others, result)))
    path = bundle.root / MANIFEST_NAME
    if path.is_symlink():
        return None
    if not bundle.is_current():
        raise DamagedBundle(
            f"{bundle.root} was replaced while it was verified. Verify what is there now."
        )
    try:
        atomic_write_text(path, manifest_text(manifest))
    except OutputError:
        return None  # said by whoever prints it: a read-only bundle is as right as any other
    return manifest.digest
