"""ExportedProgram -> ONNX, with readable axis names and nothing a runtime stumbles over."""

from __future__ import annotations

import re
from pathlib import Path

import onnx_ir as ir
import torch
from torch.export import ExportedProgram

from samforge.core.errors import ExportError
from samforge.core.files import output_errors
from samforge.core.session import PartSpec
from samforge.transform.onnx.operators import check_operators
from samforge.transform.onnx.simplify import simplify
from samforge.transform.onnx.translations import TRANSLATIONS
from samforge.transform.onnx.untraced import untraced

OPSET = 20
"""ONNX Runtime's default optimizations fail on INT8 graphs of opset 21 and 23 (1.31)."""
INLINE_BYTES = 512 * 2**20
"""Weights up to this size stay in the .onnx file; protobuf ends at 2 GiB."""
TRACE_KEYS = re.compile("stack_trace|fx_node|graph_signature|user_inputs|user_outputs")


def onnx_from_exported(exported: ExportedProgram, spec: PartSpec) -> ir.Model:
    """Convert a program.

    Args:
        exported: From :func:`samforge.transform.export.exported_from_part`.
        spec: Gives inputs, outputs and dynamic axes their names.

    Raises:
        ExportError: The exporter gave up, or the graph holds an operator that targets
            miscompile or refuse.
    """
    try:
        program = torch.onnx.export(
            untraced(exported),
            dynamo=True,
            opset_version=OPSET,
            input_names=[tensor.name for tensor in spec.inputs],
            output_names=[tensor.name for tensor in spec.outputs],
            verbose=False,
            optimize=False,
            custom_translation_table=dict(TRANSLATIONS),
        )
    except Exception as error:
        raise ExportError(f"{spec.name} cannot be converted to ONNX: {error}") from error
    assert program is not None  # noqa: S101  # None only when the exporter writes the file itself
    model = program.model
    simplify(model)
    _name_axes(model, spec)
    _drop_traces(model)
    check_operators(model, spec.name)
    return model


def save_onnx(model: ir.Model, path: Path) -> tuple[Path, ...]:
    """Write the model; large weights go to a file beside it.

    Returns:
        The side files.

    Raises:
        OutputError: A file cannot be written.
    """
    weights = sum(
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None
    )
    side = path.with_name(path.name + ".data")
    with output_errors(path, weights):
        if weights <= INLINE_BYTES:
            ir.save(model, path)
            return ()
        ir.save(model, path, external_data=side.name)
    return (side,)


def release_model(model: ir.Model) -> None:
    """Free the weights of a saved model; see :func:`samforge.transform.export.release`."""
    for value in model.graph.initializers.values():
        value.const_value = None


def _name_axes(model: ir.Model, spec: PartSpec) -> None:
    """Give dynamic axes the part's names instead of the exporter's ``s34``."""
    names: dict[str, str] = {}
    for value, tensor in zip(model.graph.inputs, spec.inputs, strict=True):
        for found, wanted in zip(value.shape or (), tensor.shape, strict=True):
            dynamic = isinstance(found, ir.SymbolicDim)
            if dynamic != isinstance(wanted, str):
                raise ExportError(
                    f"{spec.name}: axis {wanted} of {tensor.name} became {found} in the graph."
                )
            if dynamic:
                names[str(found)] = str(wanted)
    if not names:
        return
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b")
    for value in _values(model):
        if value.shape is None:
            continue
        value.shape = ir.Shape(
            [
                pattern.sub(lambda match: names[match[0]], axis.value)
                if isinstance(axis, ir.SymbolicDim) and axis.value is not None
                else axis
                for axis in value.shape
            ]
        )


def _values(model: ir.Model) -> list[ir.Value]:
    values = [*model.graph.inputs]
    for node in model.graph:
        values.extend(node.outputs)
    return values


def _drop_traces(model: ir.Model) -> None:
    """Drop paths of this machine and the exporter's notes; module names stay, for reports."""
    for holder in (model, model.graph, *model.graph, *_values(model)):
        for key in [key for key in holder.metadata_props if TRACE_KEYS.search(key)]:
            del holder.metadata_props[key]
    for node in model.graph:
        node.doc_string = None
