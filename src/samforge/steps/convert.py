"""``.pt2`` -> ONNX in the precision of the target, run and compared."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from samforge.backends import backend_from_name
from samforge.core.facts import FACTS_KEY
from samforge.core.targets import Target, target_from_name
from samforge.measure.fidelity import TensorFidelity, compare_outputs, rows
from samforge.steps.account import converted_weights, settled, tables_of
from samforge.steps.context import BuildContext, StepOutput, check_gate, collect_garbage
from samforge.steps.facts import facts_of
from samforge.steps.flavours import flavoured
from samforge.steps.options import options_of
from samforge.transform.export import exported_from_file, release
from samforge.transform.onnx.convert import onnx_from_exported, release_model, save_onnx
from samforge.transform.onnx.graph import layer_path
from samforge.transform.onnx.integer_kernels import (
    IntendedLayer,
    check_integer_kernels,
    integer_layers,
    integer_nodes,
    intended_layers,
)
from samforge.transform.onnx.recorded import check_recorded, recorded_share
from samforge.transform.onnx.u8s8 import FLOAT_NOTE


def convert_part(context: BuildContext, name: str) -> StepOutput:
    """Convert a part to ONNX and compare what the graph gives with what the part gave.

    In fp32 every tensor holds a gate. In fewer bits the figures are kept, and what is found in
    images is compared by the step that verifies the bundle.

    Raises:
        FidelityError: A tensor of an fp32 graph strays too far.
        BuildError: Quantized layers would run in float.
    """
    recipe = context.recipe
    quantized = context.is_quantized(name)
    source = context.quantized(name) if quantized else context.fused(name)
    exported = exported_from_file(context.path(source))
    model = flavoured(onnx_from_exported(exported, context.spec(name)), recipe, quantized=quantized)
    artifact = context.onnx(name)
    model.metadata_props[FACTS_KEY] = facts_of(context, name)
    sides = save_onnx(model, context.path(artifact))
    intended = intended_layers(model) if quantized and recipe.precision == "int8" else ()
    left = _left_in_float(model, context.target)
    release_model(model)
    weights = converted_weights(exported, context.path(artifact), tables_of(context, name))
    account, found = settled(context, "onnx", name, weights)
    release([*exported.state_dict.values(), *exported.constants.values()])
    del model, exported
    collect_garbage(context)
    recorded = _recorded(context, name, left) if quantized else ()
    counted = _kernels(context, name, intended) if intended else ()
    figures = compared_with_samples(context, name, context.path(artifact))
    gates = {}
    if recipe.precision == "fp32":
        gates = check_gate("onnx", name, figures, "onnx_max_abs", recipe.gates.onnx_max_abs)
    return StepOutput(
        outputs=(artifact, *(f"parts/{name}/{side.name}" for side in sides), account),
        figures=(*rows(figures), *recorded, *counted, found),
        gates=gates,
    )


def checker_of(context: BuildContext) -> Target:
    """The target whose runtime compares: what a build that stops early is run by, too."""
    return target_from_name(context.runs_on.checked_by)


def compared_with_samples(
    context: BuildContext, name: str, artifact: Path
) -> dict[str, tuple[TensorFidelity, ...]]:
    """Run an artifact on the part's samples and compare with what the part gave in eager mode."""
    spec, checker = context.spec(name), checker_of(context)
    options = options_of(context.recipe, checker)
    session = backend_from_name(checker.name).session_from_artifact(artifact, spec, options=options)
    figures = {}
    for words, path in zip(context.sizes_in_words(name), context.samples(name), strict=True):
        with np.load(context.path(path)) as sample:
            # The reference is read after the run: at full size memory peaks in it.
            actual = session.run({tensor.name: sample[tensor.name] for tensor in spec.inputs})
            reference = {tensor.name: sample[tensor.name] for tensor in spec.outputs}
        figures[words] = compare_outputs(reference, actual)
    session.close()
    return figures


def _recorded(
    context: BuildContext, name: str, left: Sequence[str]
) -> tuple[dict[str, float], ...]:
    """Hold the saved graph to what the quantizer wrote down."""
    report = json.loads(
        context.path(f"report/{name}/quantization.json").read_text(encoding="utf-8")
    )
    model = ir.load(context.path(context.onnx(name)))
    rows = report["report"]["layers"]
    figures = {
        "recorded_layers": check_recorded(name, rows, model, left=left),
        "recorded_share": recorded_share(rows, model),
    }
    return (figures,)


def _left_in_float(model: ir.Model, target: Target) -> tuple[str, ...]:
    """Quantized layers that the target's form of a graph took back to float."""
    notes = [
        part.partition(": ")[0] for part in model.metadata_props.get(FLOAT_NOTE, "").split("; ")
    ]
    if not target.engine:
        return tuple(notes)
    # TensorRT has no transposed convolution in 8 bits.
    nodes = [node for node in model.graph if node.op_type == "ConvTranspose"]
    return (*notes, *(layer_path(node) for node in nodes))


def _kernels(
    context: BuildContext, name: str, intended: Sequence[IntendedLayer]
) -> tuple[dict[str, int], ...]:
    """Read back what the runtime makes of the graph: quantized layers must multiply integers."""
    checker = checker_of(context)
    kernels = context.target.kernels
    if kernels is None or context.runs_on is not context.target:
        return ()  # a graph of another runtime's form: what runs it here is not what it is for
    found = KERNELS[kernels](context, name)
    count = check_integer_kernels(name, checker.name, intended, found)
    return ({"integer_layers": count},)


def _of_optimized_graph(context: BuildContext, name: str) -> set[str]:
    """ONNX Runtime writes down the graph that it runs."""
    from samforge.backends.onnxruntime import optimized_from_onnx

    artifact = context.path(context.onnx(name))
    with tempfile.TemporaryDirectory(dir=artifact.parent) as folder:
        optimized = Path(folder) / "optimized.onnx"
        optimized_from_onnx(artifact, optimized)
        return integer_nodes(ir.load(optimized))


def _of_layers(context: BuildContext, name: str) -> set[str]:
    """OpenVINO tells the precision of every layer that it runs."""
    from samforge.backends.openvino import OpenVinoSession

    options = options_of(context.recipe, context.runs_on)
    session = OpenVinoSession(context.path(context.onnx(name)), context.spec(name), options=options)
    found = integer_layers((one.precision, one.names) for one in session.layers())
    session.close()
    return found


KERNELS = {"optimized graph": _of_optimized_graph, "layers": _of_layers}
"""Names of the operators that multiply integers, by the way they are read back."""
