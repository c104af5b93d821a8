"""Did it really? Layers meant to multiply integers against those that a runtime does multiply so.

Runtimes turn Q/DQ into integer kernels by patterns and fall back to float without a word. After a
build the graph that runs is read back, and a difference is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from samforge.core.errors import BuildError
from samforge.transform.onnx.graph import layer_path
from samforge.transform.onnx.qdq import quantized_layers

INTEGER_OPERATORS = {
    *("MatMulInteger", "MatMulIntegerToFloat", "QLinearMatMul", "QGemm"),
    *("QLinearConv", "ConvInteger", "DynamicQuantizeMatMul"),
}
"""ONNX Runtime's operators on integers."""
WEIGHT_INPUT = {"QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3}
"""Which input is the weight, where it is not the second."""
INTEGER_TYPES = {"i8", "u8"}
"""OpenVINO's names of a layer's type when it multiplies integers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IntendedLayer:
    """A layer that is meant to multiply integers."""

    path: str
    """Its module path."""
    names: frozenset[str]
    """Its node and its stored weight: a runtime may rename one, not both."""


def intended_layers(model: ir.Model) -> tuple[IntendedLayer, ...]:
    """Layers that a graph means to multiply in integers: by Q/DQ, or as integer operators."""
    quantized = [
        (layer.node, layer.path, layer.weight.inputs[0]) for layer in quantized_layers(model)
    ]
    written = [
        (node, layer_path(node), node.inputs[WEIGHT_INPUT.get(node.op_type, 1)])
        for node in model.graph
        if node.op_type in INTEGER_OPERATORS
    ]
    return tuple(
        IntendedLayer(
            path=path,
            names=frozenset(
                name for name in (node.name, weight.name if weight is not None else None) if name
            ),
        )
        for node, path, weight in (*quantized, *written)
    )


def integer_nodes(optimized: ir.Model) -> set[str]:
    """Nodes and weights that ONNX Runtime multiplies in integers.

    Args:
        optimized: Written by ``samforge.backends.onnxruntime.optimized_from_onnx``.
    """
    nodes = [node for node in optimized.graph if node.op_type in INTEGER_OPERATORS]
    weights = {value.name for node in nodes for value in node.inputs if value is not None}
    return {name for name in weights | {node.name for node in nodes} if name}


def integer_layers(layers: Iterable[tuple[str, tuple[str, ...]]]) -> set[str]:
    """Nodes that OpenVINO multiplies in integers.

    Args:
        layers: Precision and original names of each layer, from ``OpenVinoSession.layers()``.
    """
    # A name gets a suffix where a pass rewrote the node: node_MatMul_9/DequantizationMultiply.
    return {
        name.split("/")[0]
        for precision, names in layers
        for name in names
        if precision in INTEGER_TYPES
    }


def check_integer_kernels(
    part: str, runtime: str, intended: Sequence[IntendedLayer], found: set[str]
) -> int:
    """Compare what was intended with what runs.

    Args:
        part: Name of the part, for the message.
        runtime: Name of the runtime, for the message.
        intended: From :func:`intended_layers`.
        found: From :func:`integer_nodes` or :func:`integer_layers`.

    Returns:
        Number of layers that multiply integers, all of them.

    Raises:
        BuildError: Some run in float: named.
    """
    lost = [layer.path for layer in intended if not layer.names & found]
    if lost:
        shown = ", ".join(lost[:8]) + (f" and {len(lost) - 8} more" if len(lost) > 8 else "")
        raise BuildError(
            f"{runtime} runs {len(lost)} of {len(intended)} quantized layers of {part} in float: "
            f"{shown}. Nothing was published. Leave them out of the quantization "
            f"(quantization.skip), or report it with the versions that samforge doctor prints."
        )
    return len(intended)
