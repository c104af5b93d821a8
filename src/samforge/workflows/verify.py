"""Runs a bundle against its own proof, here."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from samforge.assembly import load, session_from_bundle
from samforge.core.bundle import Bundle, open_bundle
from samforge.core.capabilities import BOXES
from samforge.core.devices import AUTO, checked_device
from samforge.core.errors import (
    DamagedBundle,
    FidelityError,
    MissingExtra,
    OutputError,
    SettingError,
)
from samforge.core.files import atomic_write_text
from samforge.core.manifest import MANIFEST_NAME, StepResult, manifest_text, sealed
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
from samforge.measure.sums import Evidence

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
    """Figure and limit of each gate on what the segmenter found."""
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
    bundle carries: by its own way, with its resize, its admission and its masks.

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
    verdict, processor = _pictures(bundle, device, precision, gates, processor)
    seconds = round(time.perf_counter() - start, 3)
    judged = verdict.judged if verdict is not None else ()
    held = {one.gate: one.limit for one in judged if not math.isnan(one.interval.value)}
    if limit is not None:
        held["feature_cosine"] = limit
    after = _recorded(bundle, tensors, verdict, processor, seconds, held) if record else None
    return Verification(
        bundle=bundle.root,
        target=manifest.target,
        precision=precision,
        processor=processor,
        seconds=seconds,
        limit=limit,
        tensors=tensors,
        evidence=None if verdict is None else verdict.evidence,
        gates={one.gate: (one.interval.value, one.limit) for one in judged if one.gate in held},
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


def _pictures(
    bundle: Bundle, device: str, precision: str, gates: Gates, processor: str
) -> tuple[Verdict | None, str]:
    """Ask the segmenter of this machine, where the bundle carries pictures."""
    if PICTURES_NAME not in bundle.manifest.files:
        return None, processor
    bundle.confirm((PICTURES_NAME,))
    proof = proof_pictures_from_file(bundle.path(PICTURES_NAME))
    bundle.confirm((PICTURES_NAME,))
    with load(bundle, device=device) as segmenter:
        verdict = check_proof_pictures(
            proof,
            segmenter,
            boxes=BOXES.among(bundle.manifest.parts),
            precision=precision,
            gates=gates,
        )
        return verdict, segmenter.processor


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
    tensors: tuple[ProvenTensor, ...],
    verdict: Verdict | None,
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
        fidelity=(
            *({"part": one.part, **one.fidelity.to_dict()} for one in tensors),
            *(() if verdict is None else (_figures(verdict),)),
        ),
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
