"""Runs a bundle against its own proof, here."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from samforge.assembly import session_from_bundle
from samforge.core.bundle import Bundle, open_bundle
from samforge.core.errors import DamagedBundle, FidelityError, MissingExtra, OutputError
from samforge.core.files import atomic_write_text
from samforge.core.manifest import MANIFEST_NAME, StepResult, manifest_text, sealed
from samforge.core.native import error_of_item, isolated
from samforge.core.recipe import Gates
from samforge.core.session import Session
from samforge.measure import PROOF_NAME, ProvenTensor, check_proof, proven_tensors

STEP = "verify here"
"""Name of the record in the manifest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What running a bundle's parts showed."""

    bundle: Path
    """Its folder."""
    target: str
    """Runtime."""
    precision: str
    """Number format."""
    processor: str
    """Where it ran."""
    seconds: float
    """What loading, running and comparing took."""
    limit: float
    """Smallest cosine allowed."""
    tensors: tuple[ProvenTensor, ...]
    """Every output of every part against fp32."""
    recorded: bool
    """Whether the bundle remembers it; False where its folder cannot be written."""
    digest: str
    """The bundle's digest now: what it remembers is part of it."""


def verify(path: str | Path, *, digest: str | None = None) -> Verification:
    """Run every part of a bundle on its proof's inputs, hold the gate, and remember that it held.

    A part that cannot be loaded or run does not end the others: all that fail are named.

    Args:
        path: The bundle's folder.
        digest: The bundle's digest, as a build prints it: any other bundle is refused.

    Returns:
        What each part gave, compared with fp32.

    Raises:
        BundleError: It is no bundle, is damaged, holds no proof, is another than the one of the
            digest, or cannot run here.
        MissingExtra: Its runtime is not installed.
        FidelityError: What runs here does not compute what fp32 does.
    """
    bundle = open_bundle(path, digest=digest)
    manifest = bundle.manifest
    if PROOF_NAME not in manifest.files:
        raise DamagedBundle(
            f"{bundle.root} holds no {PROOF_NAME} to verify it with. Build it again; samforge "
            "compare measures it on data of yours."
        )
    start = time.perf_counter()
    failed: dict[str, Exception] = {}
    sessions: dict[str, Session] = {}
    try:
        for part in manifest.parts:
            with isolated(failed.__setitem__, part):
                sessions[part] = session_from_bundle(bundle, part)
        bundle.confirm((PROOF_NAME,))
        tensors = proven_tensors(bundle.path(PROOF_NAME), sessions, failed=failed)
        bundle.confirm((PROOF_NAME,))
        processor = next((session.processor for session in sessions.values()), "")
    finally:
        for session in sessions.values():
            session.close()
    precision = str(manifest.recipe.get("precision", "fp32"))
    limit = _checked(tensors, failed, precision, _gates(bundle))
    seconds = round(time.perf_counter() - start, 3)
    after = _recorded(bundle, tensors, processor, seconds, limit)
    return Verification(
        bundle=bundle.root,
        target=manifest.target,
        precision=precision,
        processor=processor,
        seconds=seconds,
        limit=limit,
        tensors=tensors,
        recorded=after is not None,
        digest=after or bundle.digest,
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
    table = bundle.manifest.recipe.get("gates") or {}
    return Gates(feature_cosine=table.get("feature_cosine"))


def _recorded(
    bundle: Bundle,
    tensors: tuple[ProvenTensor, ...],
    processor: str,
    seconds: float,
    limit: float,
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
        fidelity=tuple({"part": one.part, **one.fidelity.to_dict()} for one in tensors),
        gates={"feature_cosine": limit},
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
