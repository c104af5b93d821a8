"""int8 Q/DQ -> FP8 E4M3 Q/DQ: the same calibration, another number format.

E4M3 has 3 bits of mantissa at every magnitude from 2^-6 to 448, where int8 has 127 equal steps:
outliers cost it nothing. ONNX Runtime's processor kernels have no FP8; it runs the graph operator
by operator in float, which checks the numbers and says nothing of speed. It loads these graphs only
with its optimizations off (1.31), which the file says in its notes.
"""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np
import onnx_ir as ir

from samforge.core.session import Array
from samforge.transform.onnx.graph import array_of, constant, note, tidy
from samforge.transform.onnx.qdq import activation_nodes, is_weight, read_weight

LARGEST = 448.0
"""Largest number of E4M3 (OCP 8-bit floating point specification, 2023)."""
ACTIVATION_STEPS = 127.5
"""An int8 activation's range of 255 steps reaches from -amax to amax: its scale is amax / 127.5."""
WEIGHT_STEPS = 127.0
"""An int8 weight's largest magnitude becomes 127."""
E4M3 = ir.DataType.FLOAT8E4M3FN
UNOPTIMIZED_NOTE = "samforge.onnxruntime.unoptimized"
"""Read by ``samforge.backends.onnxruntime``."""


def to_e4m3(model: ir.Model, float_weights: Mapping[str, Array] | None = None) -> ir.Model:
    """Turn a symmetric int8 graph into an E4M3 one, in place.

    Scales become amax / 448: the ranges stay, so no calibration is repeated.

    Args:
        model: With int8 Q/DQ, before or after :func:`cast_half`.
        float_weights: Weights before quantization by initializer name, in the initializer's
            layout. Without one a weight is rounded twice, first to int8.

    Returns:
        The same model.
    """
    zero = constant(model, "zero_point_e4m3", np.zeros((), ml_dtypes.float8_e4m3fn), E4M3)
    scales: dict[ir.Value, ir.Value] = {}
    for node in activation_nodes(model):
        scale = node.inputs[1]
        array = array_of(scale)
        if scale is None or array is None:
            continue
        if scale not in scales:
            scales[scale] = constant(model, f"{scale.name}_e4m3", _scale(array, ACTIVATION_STEPS))
        _set(node, 1, scales[scale])
        _set(node, 2, zero)
        if node.op_type == "QuantizeLinear":
            node.outputs[0].dtype = E4M3
    for node in list(model.graph):
        if node.op_type == "DequantizeLinear" and is_weight(node):
            _convert_weight(model, node, float_weights or {})
    tidy(model)
    note(model, [(UNOPTIMIZED_NOTE, "FP8 is emulated operator by operator: slow, for checking")])
    return model


def _scale(array: Array, steps: float) -> Array:
    """Turn amax / steps into amax / 448, computed in float32 whatever the graph's type."""
    scaled = array.astype(np.float32) * np.float32(steps / LARGEST)
    return np.asarray(scaled, array.dtype)


def _convert_weight(model: ir.Model, node: ir.Node, float_weights: Mapping[str, Array]) -> None:
    weight, given, scale = read_weight(node), node.inputs[0], node.inputs[1]
    if weight.integers.dtype != np.int8 or given is None or scale is None:
        return
    name = given.name or "weight"
    floats = float_weights.get(name, None)
    floats = weight.floats if floats is None else np.asarray(floats, np.float32)
    scales = _scale(weight.scales, WEIGHT_STEPS)
    shape = [1] * floats.ndim
    if scales.size > 1:
        shape[weight.axis] = -1
    steps = (floats / scales.astype(np.float32).reshape(shape)).clip(-LARGEST, LARGEST)
    stored = constant(model, f"{name}_e4m3", steps.astype(ml_dtypes.float8_e4m3fn), E4M3)
    zeros = np.zeros(scales.shape, ml_dtypes.float8_e4m3fn)
    _set(node, 0, stored)
    _set(node, 1, constant(model, f"{scale.name}_e4m3", scales))
    _set(node, 2, constant(model, f"{name}_zero_e4m3", zeros, E4M3))


def _set(node: ir.Node, index: int, value: ir.Value) -> None:
    """Set an input that may not be there yet."""
    if len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)
