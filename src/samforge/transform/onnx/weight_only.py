"""fp32 graph -> int8 weights that are dequantized where they are read: a quarter of the file.

No calibration is needed and activations stay as they are. It saves space, not time: ONNX Runtime
and OpenVINO compute such layers in float.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from samforge.core.session import Array
from samforge.transform.onnx.graph import array_of, constant, consumers, set_type, tidy

FEWEST = 1024
"""Smaller weights stay float: their scales would weigh as much as they save."""
OUTPUT_AXES = {"MatMul": -1, "Conv": 0, "ConvTranspose": 1}
"""Axis of the output channels in an operator's weight."""


def weights_to_int8(model: ir.Model) -> ir.Model:
    """Store weights of linears and convolutions as symmetric int8 per output channel, in place.

    Args:
        model: With float32 weights. In Q/DQ graphs what is quantized already stays as it is.

    Returns:
        The same model.
    """
    for value in list(model.graph.initializers.values()):
        axes = {_output_axis(value, node, index) for node, index in value.uses()}
        array = array_of(value)
        if array is None or array.dtype != np.float32 or array.size < FEWEST or len(axes) != 1:
            continue
        axis = axes.pop()
        if axis is None or value.is_graph_output():
            continue
        _store(model, value, array, axis % array.ndim)
    tidy(model)
    return model


def int8_and_scales(array: Array, axis: int) -> tuple[Array, Array]:
    """Round a weight to symmetric int8, one scale for each index along an axis.

    Args:
        array: float32, of any shape.
        axis: Axis of the channels, counted from the front.

    Returns:
        int8 of the same shape, and float32 scales (channels,): largest magnitude / 127.
    """
    others = tuple(index for index in range(array.ndim) if index != axis)
    largest = np.maximum(array.max(axis=others), -array.min(axis=others))
    # A channel of zeros keeps a scale that is not zero.
    scales = (np.where(largest > 0, largest, 1) / 127).astype(np.float32)
    shape = [1] * array.ndim
    shape[axis] = -1
    steps = array / scales.reshape(shape)
    np.rint(steps, out=steps)  # the text encoder's table is 202 MB: no second copy of it
    return steps.astype(np.int8), scales


def _output_axis(value: ir.Value, node: ir.Node, index: int) -> int | None:
    """Axis of the output channels if the node reads this value as its weight."""
    if index != 1 or node.domain or value.shape is None or len(value.shape) < 2:
        return None
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    if node.op_type == "ConvTranspose" and node.attributes.get_int("group", 1) != 1:
        return None
    if node.op_type == "MatMul" and len(value.shape) != 2:
        return None
    return OUTPUT_AXES.get(node.op_type)


def _store(model: ir.Model, value: ir.Value, array: Array, axis: int) -> None:
    integers, scales = int8_and_scales(array, axis)
    dequantize = ir.node(
        "DequantizeLinear",
        [
            constant(model, f"{value.name}_int8", integers),
            constant(model, f"{value.name}_scales", scales),
        ],
        {"axis": axis},
    )
    result = dequantize.outputs[0]
    result.name, result.shape = f"{value.name}_float", value.shape
    set_type(result, value.dtype)
    readers = consumers(value)
    value.replace_all_uses_with(result)
    model.graph.insert_before(_first(model, readers), dequantize)


def _first(model: ir.Model, nodes: list[ir.Node]) -> ir.Node:
    wanted = set(nodes)
    return next(node for node in model.graph if node in wanted)
