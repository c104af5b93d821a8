"""Runs a bundle against its own proof, here: the work behind ``samforge verify``."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from samforge import Bundle, open_bundle
from samforge.assembly import session_from_bundle
from samforge.core.errors import DamagedBundle, OutputError
from samforge.core.files import atomic_write_json
from samforge.core.manifest import MANIFEST_NAME, StepResult
from samforge.core.recipe import Gates
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


def verify_here(path: Path) -> Verification:
    """Run every part of a bundle on its proof's inputs, hold the gate, and remember that it held.

    Raises:
        BundleError: It is no bundle, is damaged, holds no proof, or cannot run here.
        MissingExtra: Its runtime is not installed.
        FidelityError: What runs here does not compute what fp32 does.
    """
    bundle = open_bundle(path)
    manifest = bundle.manifest
    if PROOF_NAME not in manifest.files:
        raise DamagedBundle(
            f"{bundle.root} holds no {PROOF_NAME} to verify it with. Build it again; samforge "
            "compare measures it on data of yours."
        )
    start = time.perf_counter()
    sessions = {part: session_from_bundle(bundle, part) for part in manifest.parts}
    try:
        tensors = proven_tensors(bundle.path(PROOF_NAME), sessions)
        processor = next(iter(sessions.values())).processor
    finally:
        for session in sessions.values():
            session.close()
    precision = str(manifest.recipe.get("precision", "fp32"))
    limit = check_proof(tensors, precision, _gates(bundle))
    seconds = round(time.perf_counter() - start, 3)
    return Verification(
        bundle=bundle.root,
        target=manifest.target,
        precision=precision,
        processor=processor,
        seconds=seconds,
        limit=limit,
        tensors=tensors,
        recorded=_recorded(bundle, tensors, processor, seconds, limit),
    )


def _gates(bundle: Bundle) -> Gates:
    table = bundle.manifest.recipe.get("gates") or {}
    return Gates(feature_cosine=table.get("feature_cosine"))


def _recorded(
    bundle: Bundle,
    tensors: tuple[ProvenTensor, ...],
    processor: str,
    seconds: float,
    limit: float,
) -> bool:
    """Put the result into the manifest, in place of an earlier one."""
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
    manifest = replace(bundle.manifest, steps=(*others, result))
    try:
        atomic_write_json(bundle.root / MANIFEST_NAME, manifest)
    except OutputError:
        return False  # said by whoever prints it: a read-only bundle is as right as any other
    return True
