"""A bundle's own proof: inputs and what fp32 makes of them, to compare with on any machine.

One ``.npz`` file: the inputs of the parts whole, and of every output a sample of its elements at
fixed places. The parts run as a chain: what one gives is what the next takes, so that an error
anywhere shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from samforge.core.errors import DamagedBundle, FidelityError
from samforge.core.files import output_errors
from samforge.core.native import isolated
from samforge.core.recipe import Gates
from samforge.core.session import Array, PartSpec, Session, Tensors
from samforge.measure.fidelity import TensorFidelity, compare_tensor
from samforge.measure.gates import feature_cosine_limit

MOST_ELEMENTS = 65_536
"""Elements kept of each output: enough for any wrong kernel to show, 256 KiB at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProvenTensor:
    """One output of one part against fp32."""

    part: str
    """The part."""
    fidelity: TensorFidelity
    """The comparison, over the elements that were kept."""


def proof_inputs(specs: Sequence[PartSpec], examples: Callable[[str], Tensors]) -> dict[str, Array]:
    """The tensors that a chain of parts has to be given.

    A tracker is a circle: ``memory_attention`` takes memories, and ``memory_encoder``, behind it,
    makes them. So it counts which parts come before, not which there are.

    Args:
        specs: The parts, each after those whose outputs it takes.
        examples: Inputs of a part, by its name.

    Returns:
        Every tensor that no part gives to a later one, of the first part that takes it.
    """
    given: dict[str, Array] = {}
    known: set[str] = set()
    for spec in specs:
        wanted = {tensor.name for tensor in spec.inputs} - known
        if wanted:
            given |= {name: array for name, array in examples(spec.name).items() if name in wanted}
        known |= wanted | {tensor.name for tensor in spec.outputs}
    return given


def write_proof(path: Path, sessions: Mapping[str, Session], inputs: Tensors) -> None:
    """Run the reference and keep what it gives.

    Args:
        path: File to write.
        sessions: fp32 sessions by part, each after those whose outputs it takes.
        inputs: What :func:`proof_inputs` names: ``images``, ``input_ids``, …

    Raises:
        OutputError: The file cannot be written.
    """
    arrays = {f"input/{name}": array for name, array in inputs.items()}
    for part, outputs in _chain(sessions, inputs).items():
        arrays |= {f"{part}/{name}": kept_elements(array) for name, array in outputs.items()}
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # its stub names one keyword only


def proven_tensors(
    path: Path,
    sessions: Mapping[str, Session],
    *,
    failed: MutableMapping[str, Exception] | None = None,
) -> tuple[ProvenTensor, ...]:
    """Run the built parts on the proof's inputs and compare.

    Args:
        path: The proof.
        sessions: What was built, by part, in the order of the chain.
        failed: Takes the parts that cannot be run, with the reason, while the others are compared;
            None raises at the first.

    Raises:
        DamagedBundle: The file is no proof, or lacks a part.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            kept: dict[str, Array] = {name: file[name] for name in file.files}
    except Exception as error:  # zip, header and OS errors alike
        raise DamagedBundle(f"{path} cannot be read as a proof: {error}. Build again.") from error
    prefix = "input/"
    inputs = {name.removeprefix(prefix): a for name, a in kept.items() if name.startswith(prefix)}
    found = []
    for part, outputs in _chain(sessions, inputs, failed).items():
        for name, array in outputs.items():
            if f"{part}/{name}" not in kept:
                raise DamagedBundle(f"{path} holds no reference for {name} of {part}. Build again.")
            reference = kept[f"{part}/{name}"]
            found.append(
                ProvenTensor(
                    part=part, fidelity=compare_tensor(name, reference, kept_elements(array))
                )
            )
    return tuple(found)


def check_proof(
    tensors: tuple[ProvenTensor, ...], precision: str, gates: Gates | None = None
) -> float:
    """Make sure that every output points where fp32's does.

    Returns:
        The smallest cosine allowed.

    Raises:
        FidelityError: One does not; all that fail are named, the worst first.
    """
    limit = feature_cosine_limit(precision, gates or Gates())
    failed = sorted(
        (one for one in tensors if not one.fidelity.cosine >= limit),
        key=lambda one: one.fidelity.cosine,
    )
    if failed:
        named = ", ".join(
            f"{one.fidelity.tensor} of {one.part} {one.fidelity.cosine:.4f}" for one in failed
        )
        raise FidelityError(
            f"What runs here does not compute what fp32 does: cosine of {named}; the gate of "
            f"{precision} is {limit:g}. Do not use it: build again, or in a safer form."
        )
    return limit


def kept_elements(array: Array) -> Array:
    """Elements at fixed places, spread evenly; all of them where there are few."""
    flat = array.reshape(-1)
    if flat.size <= MOST_ELEMENTS:
        return flat.copy()
    places = np.linspace(0, flat.size - 1, MOST_ELEMENTS).round().astype(np.int64)
    return flat[places]


def _chain(
    sessions: Mapping[str, Session],
    inputs: Tensors,
    failed: MutableMapping[str, Exception] | None = None,
) -> dict[str, dict[str, Array]]:
    """Run every part on what was given and what earlier parts gave."""

    def report(part: str, error: Exception) -> None:
        assert failed is not None  # noqa: S101  isolated() calls no report that is None
        failed[part] = error

    known = dict(inputs)
    results = {}
    for part, session in sessions.items():
        with isolated(None if failed is None else report, part):
            missing = [t.name for t in session.spec.inputs if t.name not in known]
            if missing:
                raise DamagedBundle(
                    f"{part} takes {', '.join(missing)}, which neither the proof nor a part before "
                    "it gives."
                )
            results[part] = session.run({t.name: known[t.name] for t in session.spec.inputs})
            known |= results[part]
    return results
