"""Rules about single operators and small patterns of them."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from samforge.transform.onnx.attention_pattern import HALF, sources
from samforge.transform.onnx.hazards.rule import Rule, named

INT32_MAX = 2**31 - 1
SMALL = 4096
"""Elements up to which an integer constant is looked at; larger ones are data, not sizes."""
ACTIVATIONS = {"Relu", "Gelu", "Sigmoid", "Mul", "LeakyRelu", "HardSwish", "Elu"}
NORM = {"Add", "Sub", "Mul", "Div", "Sqrt", "Reciprocal", "Cast"}


def _cumsum_axes(model: ir.Model) -> Iterator[str]:
    nodes = [node for node in model.graph.all_nodes() if node.op_type == "CumSum"]
    kinds = {
        (_constant(node.inputs[1]), _integer(node, "exclusive"), _integer(node, "reverse"))
        for node in nodes
    }
    if len(kinds) > 1:
        yield from map(named, nodes)


def _grid_sample(model: ir.Model) -> Iterator[str]:
    yield from (named(node) for node in model.graph.all_nodes() if node.op_type == "GridSample")


def _if(model: ir.Model) -> Iterator[str]:
    yield from (named(node) for node in model.graph.all_nodes() if node.op_type == "If")


def _antialias(model: ir.Model) -> Iterator[str]:
    for node in model.graph.all_nodes():
        if node.op_type == "Resize" and _integer(node, "antialias"):
            yield named(node)


def _layer_norm_half(model: ir.Model) -> Iterator[str]:
    """A square, its mean, an epsilon and a root, in halves: variances over 65504 are infinite."""
    for node in model.graph.all_nodes():
        if not _is_square(node) or node.outputs[0].dtype not in HALF:
            continue
        for mean in node.outputs[0].consumers():
            if mean.op_type != "ReduceMean":
                continue
            after = _following(mean, NORM, steps=3)
            if any(other.op_type in ("Sqrt", "Reciprocal") for other in after):
                yield named(node)
                break


def _wide_numbers(model: ir.Model) -> Iterator[str]:
    for value in (*model.graph.inputs, *_outputs(model)):
        if value.dtype == ir.DataType.DOUBLE:
            yield f"{value.name} (float64)"
    for value in model.graph.initializers.values():
        if value.dtype == ir.DataType.DOUBLE:
            yield f"{value.name} (float64 weights)"
        elif value.dtype == ir.DataType.INT64 and _beyond_int32(value):
            yield f"{value.name} (int64 values beyond int32)"


def _strided_residual(model: ir.Model) -> Iterator[str]:
    """Convolution, activation and residual addition whose other operand a Concat reads too."""
    for node in model.graph.all_nodes():
        if node.op_type != "Add" or node.outputs[0].dtype not in HALF:
            continue
        for own, other in ((0, 1), (1, 0)):
            first, second = node.inputs[own], node.inputs[other]
            if first is None or second is None:
                continue
            made = [value.producer() for value in sources(first, ACTIVATIONS)]
            read = {user.op_type for user in second.consumers()}
            if any(maker and maker.op_type == "Conv" for maker in made) and "Concat" in read:
                yield named(node)
                break


def _outputs(model: ir.Model) -> Iterator[ir.Value]:
    for node in model.graph.all_nodes():
        yield from node.outputs


def _integer(node: ir.Node, name: str) -> int:
    attribute = node.attributes.get(name)
    return attribute.as_int() if attribute is not None else 0


def _constant(value: ir.Value | None) -> tuple[int, ...] | None:
    """A small integer constant, or None where it is none."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    if tensor is None or tensor.size > SMALL:
        return None
    return tuple(int(number) for number in tensor.numpy().ravel())


def _beyond_int32(value: ir.Value) -> bool:
    users = {user.op_type for user in value.consumers()}
    if users <= {"Slice"}:  # an end of "everything": TensorRT clamps it
        return False
    return any(abs(number) > INT32_MAX for number in _constant(value) or ())


def _is_square(node: ir.Node) -> bool:
    if node.op_type == "Pow":
        return True
    return node.op_type == "Mul" and node.inputs[0] is node.inputs[1]


def _following(node: ir.Node, through: set[str], *, steps: int) -> list[ir.Node]:
    """Nodes within a few steps behind another, walking through some operators only."""
    found: list[ir.Node] = []
    front = [node]
    for _ in range(steps):
        front = [
            user
            for one in front
            for output in one.outputs
            for user in output.consumers()
            if user.op_type in through
        ]
        found += front
    return found


RULES = (
    Rule(
        id="cumsum-axes",
        severity="wrong",
        explanation="Several CumSum of different axis or direction are computed as if they were "
        "one kind, in fp32 too. Compute positions beforehand and keep them as constants.",
        reference="NVIDIA/TensorRT#4551, #4513",
        find=_cumsum_axes,
    ),
    Rule(
        id="grid-sample",
        severity="wrong",
        explanation="GridSample in DETR-like graphs gives wrong results without a warning. "
        "Sample with Gather or matrix products.",
        reference="NVIDIA/TensorRT#4813, #4646",
        find=_grid_sample,
    ),
    Rule(
        id="conditional",
        severity="wrong",
        explanation="Both branches of an If are built, and what follows it can be wrong at shapes "
        "other than those of the build. Export without data-dependent branches.",
        reference="NVIDIA/TensorRT#4846",
        find=_if,
    ),
    Rule(
        id="strided-residual",
        severity="wrong",
        explanation="A half-precision residual behind a convolution is read as if it were dense "
        "when a Concat reads it too. Let the Concat read a copy.",
        reference="NVIDIA/TensorRT#4854",
        find=_strided_residual,
    ),
    Rule(
        id="layer-norm-half",
        severity="wrong",
        explanation="A LayerNorm made of single operators squares in half precision: values from "
        "256 on overflow. Use the operator LayerNormalization, or float32 around it.",
        reference="TensorRT's own warning on LayerNorm after self-attention in FP16",
        find=_layer_norm_half,
    ),
    Rule(
        id="resize-antialias",
        severity="refused",
        explanation="The parser refuses Resize with antialias. It changes nothing where the image "
        "grows: leave it out there.",
        reference="onnx-tensorrt, operators.md: Resize",
        find=_antialias,
    ),
    Rule(
        id="wide-numbers",
        severity="refused",
        explanation="float64 is not supported, and int64 values beyond int32 were clamped or "
        "refused before strongly typed networks. Use float32, and sizes that fit.",
        reference="onnx-tensorrt, operators.md: data types",
        find=_wide_numbers,
    ),
)
"""Rules of this file."""
