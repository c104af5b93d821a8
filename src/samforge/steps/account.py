"""The account of a part's weights, from the checkpoint to the file that runs.

Every step that makes tensors of others looks each of them up in what it made. What is found as it
was, or moved, cast or quantized by the rules of its number format, is counted; what a fusion or the
quantizer changed is listed under its name; anything else ends the build.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from torch.export import ExportedProgram

from samforge.core.errors import FidelityError
from samforge.core.files import atomic_write_json
from samforge.models.part import Part
from samforge.models.sources import WeightSource
from samforge.steps.context import BuildContext
from samforge.transform.account import (
    CASTS,
    EQUAL,
    FLOAT8,
    MISSING,
    MOVED,
    SLACK,
    Array,
    Entry,
    account_for,
    counted,
    same_digits,
)
from samforge.transform.fuse import FusedProgram
from samforge.transform.fuse.constants import constant_nodes
from samforge.transform.fuse.editor import GraphEditor
from samforge.transform.onnx.e4m3 import LARGEST, WEIGHT_STEPS
from samforge.transform.onnx.half import SMALLEST_SCALE
from samforge.transform.onnx.stored import integer_biases, stored_in_onnx

SCALE, INTEGERS = "_scale", "_int8"
"""Ends of the names that the quantizer gives a weight's scales and its integers."""
FLOATS = ("float32", *CASTS)
"""Forms of a quantized weight that went back to float."""
SHOWN = 6
"""Tensors that an error names."""
aten = torch.ops.aten


def exported_weights(source: WeightSource, part: Part, program: ExportedProgram) -> list[Entry]:
    """Look every tensor that a part loaded up in the program that was read back.

    Args:
        source: The checkpoint, read again.
        part: Says under which name it holds which.
        program: From the file.
    """
    tensors = tensors_of(program)
    entries = [Entry(name=name, form=reason) for name, reason in part.folded.items()]
    for stored, name in part.origins.items():
        wanted, found = source.tensor(stored).detach().to(torch.float32), tensors.get(name)
        same = found is not None and found.shape == wanted.shape and torch.equal(found, wanted)
        entries.append(Entry(name=stored, form=EQUAL if same else MISSING, place=name))
    return entries


def fused_weights(before: Mapping[str, str], fused: FusedProgram) -> list[Entry]:
    """Look every tensor of a program up in its fused form.

    Args:
        before: Digests of the program's tensors, from :func:`digests_of`.
        fused: The fused form, with what each fusion changed.
    """
    after = digests_of(fused.program)
    places = {digest: name for name, digest in after.items()}
    changed = dict.fromkeys(fused.unread, "left out: nothing reads it")
    for result in fused.results:
        for name in result.weights:
            changed[name] = f"{changed[name]}, {result.name}" if name in changed else result.name
    entries = []
    for name, digest in before.items():
        if after.get(name) == digest:
            form = EQUAL
        elif name in changed:
            form = changed[name]
        else:
            form = MOVED if digest in places else MISSING
        entries.append(Entry(name=name, form=form, place=places.get(digest)))
    return entries


def quantized_weights(
    floating: ExportedProgram, evened: Mapping[str, Tensor], quantized: ExportedProgram
) -> list[Entry]:
    """Look every stored tensor of a fused program up in its quantized form.

    Args:
        floating: The fused program.
        evened: Its tensors with their channels evened out, by powers of two: these change no digit
            of a number, which is checked.
        quantized: The program with Q/DQ.
    """
    weights = {name: one for name, one in floating.state_dict.items() if isinstance(one, Tensor)}
    stored = {name: one.detach().numpy() for name, one in tensors_of(quantized).items()}
    wanted = {name: evened[name].detach().numpy() for name in weights if name in evened}
    found = {entry.name: entry for entry in account_for(wanted, stored)}
    entries = []
    for name, tensor in weights.items():
        entry = found.get(name, Entry(name=name, form=MISSING))
        if name in wanted and not np.array_equal(tensor.detach().numpy(), wanted[name]):
            form = f"evened out, {entry.form}" if entry.form != EQUAL else "evened out"
            kept = same_digits(tensor.detach().numpy(), wanted[name]) and entry.form != MISSING
            entry = replace(entry, form=form if kept else MISSING)
        entries.append(entry)
    return entries


def converted_weights(
    program: ExportedProgram, artifact: Path, tables: Collection[str] = ()
) -> tuple[Entry, ...]:
    """Look every stored tensor of a program up in an ONNX file, as it was saved.

    Args:
        program: What was converted.
        artifact: The file.
        tables: Names of tensors that come from settings and not from the checkpoint. Targets form
            them anew, and every sample reads all of them.
    """
    weights = {
        name: tensor.detach().numpy()
        for name, tensor in program.state_dict.items()
        if isinstance(tensor, Tensor) and _tells(tensor) and name not in tables
    }
    model = ir.load(artifact)
    stored = stored_in_onnx(model)
    found = account_for(weights, stored, exact=looked_up_in(program))
    if all(entry.form != MISSING for entry in found):
        return found
    # Reads more of the graph than most parts need.
    rest = _Rest(
        stored=stored,
        biases=tuple(integer_biases(model)),
        forms={entry.name: entry.form for entry in found},
        constants=read_by_constants_alone(program),
    )
    return tuple(
        rest.found(entry.name, weights[entry.name]) if entry.form == MISSING else entry
        for entry in found
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rest:
    """What the exporter or the target's form computed of tensors that are not there themselves."""

    stored: Mapping[str, Array]
    biases: tuple[tuple[str, Array, Array], ...]
    forms: Mapping[str, str]
    constants: Collection[str]

    def found(self, name: str, array: Array) -> Entry:
        """What became of a tensor."""
        for place, integers, steps in self.biases:
            if array.shape == integers.shape and _rounds_to(array, integers, steps):
                return Entry(name=name, form="int32", place=place)
        if name.endswith(SCALE):
            return self._scale(name, array)
        folded = "folded with other constants" if name in self.constants else MISSING
        return Entry(name=name, form=folded)

    def _scale(self, name: str, array: Array) -> Entry:
        """Scales of a weight that is in float again, or in FP8."""
        weight = self.forms.get(f"{name.removesuffix(SCALE)}{INTEGERS}", "")
        if weight in FLOATS:
            return Entry(name=name, form="folded into the weight that went back to float")
        if weight == FLOAT8:
            # The same range in other steps; half rounds a scale, and lifts one it cannot hold.
            wanted = np.maximum(array * np.float32(WEIGHT_STEPS / LARGEST), SMALLEST_SCALE)
            for place, other in self.stored.items():
                if other.shape == array.shape and other.dtype.kind == "f":
                    lifted = np.maximum(other.astype(np.float32), SMALLEST_SCALE)
                    if np.allclose(lifted, wanted, rtol=1e-3):
                        return Entry(name=name, form=f"{FLOAT8} scale", place=place)
        return Entry(name=name, form=MISSING)


def _rounds_to(array: Array, integers: Array, steps: Array) -> bool:
    return bool((np.abs(array - integers * steps) <= 0.5 * (1 + SLACK) * steps).all())


def read_by_constants_alone(program: ExportedProgram) -> frozenset[str]:
    """Names of tensors that a graph reads only to compute what is the same in every run."""
    editor = GraphEditor(program)
    constant = constant_nodes(editor)
    nodes = [
        node
        for node in editor.graph.find_nodes(op="placeholder")
        if editor.tensor(node) is not None
    ]
    return frozenset(
        editor.name(node)
        for node in nodes
        if node.users and all(one in constant for one in node.users)
    )


def tables_of(context: BuildContext, part: str) -> frozenset[str]:
    """Names of a fused part's tensors that come from settings: rotary angles, orders of tokens."""
    account = json.loads(context.path(_file("fuse", part)).read_text(encoding="utf-8"))
    return frozenset(account["tables"])


def settled(
    context: BuildContext,
    step: str,
    part: str,
    entries: Sequence[Entry],
    *,
    tables: Iterable[str] = (),
) -> tuple[str, dict[str, Any]]:
    """Write the account down and make sure that it is complete.

    Args:
        context: The build.
        step: Whose account it is.
        part: Of which part.
        entries: What was found.
        tables: Names of tensors behind the step that come from no checkpoint.

    Returns:
        The file, relative to the staging folder, and the counts for the step's figures.

    Raises:
        FidelityError: A tensor is not found; it is named.
    """
    missing = [entry.name for entry in entries if entry.form == MISSING]
    if missing:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise FidelityError(
            f"{step} of {part}: {len(missing)} of {len(entries)} tensors of the weights are not in "
            f"what was made from them, as they are or in another known form: "
            f"{', '.join(missing[:SHOWN])}{more}. Nothing was published."
        )
    report = _file(step, part)
    rows = [{"name": one.name, "form": one.form, "place": one.place} for one in entries]
    counts = counted(entries)
    atomic_write_json(
        context.path(report),
        {"part": part, "forms": counts, "tables": sorted(tables), "weights": rows},
    )
    return report, {"weights": len(entries), "forms": counts}


def _file(step: str, part: str) -> str:
    return f"report/{part}/weights-{step}.json"


def tensors_of(program: ExportedProgram) -> dict[str, Tensor]:
    """Parameters, buffers and constants of a program."""
    stored = {**program.constants, **program.state_dict}
    return {name: value for name, value in stored.items() if isinstance(value, Tensor)}


def digests_of(program: ExportedProgram) -> dict[str, str]:
    """SHA-256 of the type, shape and numbers of each tensor."""
    return {name: _digest(tensor) for name, tensor in tensors_of(program).items()}


def _digest(tensor: Tensor) -> str:
    array = np.ascontiguousarray(tensor.detach().numpy())
    digest = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
    digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def looked_up_in(program: ExportedProgram) -> frozenset[str]:
    """Names of tensors whose rows are looked up by their number."""
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    read = {
        node.args[0].name
        for node in program.graph.nodes
        if node.op == "call_function" and node.target is aten.embedding.default
    }
    return frozenset(str(names[name]) for name in read if name in names)


def _tells(tensor: Tensor) -> bool:
    """Whether a tensor holds something: zero points that are all 0 may go anywhere."""
    return tensor.is_floating_point() or bool(tensor.any())
