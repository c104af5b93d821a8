"""fp32 graph -> fp16 products with fp32 islands, with or without Q/DQ.

Every value gets the type its producer computes in, and a Cast where a reader wants another: one a
value and type. Operators that only move values take the type of whoever reads them, so a cast sits
where it is read once and not behind every branch.
"""

from __future__ import annotations

from dataclasses import replace as replaced
from fnmatch import fnmatch

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from samforge.core.errors import SettingError
from samforge.core.session import Array
from samforge.transform.onnx.graph import array_of, constant, consumers, layer_path, note, tidy
from samforge.transform.onnx.precision_plan import (
    FLOATS,
    MOVES,
    SAFE,
    TYPES,
    Plan,
    attention_core,
    planned_type,
)
from samforge.transform.onnx.qdq import is_weight, read_weight

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
MASKED = -1e4
"""What half graphs add to a score that must not count: -65504 is the smallest half, and two masks
may be added up."""
LARGEST_HALF = 65504.0
DISABLED_NOTE = "samforge.onnxruntime.disabled"
"""Read by ``samforge.backends.onnxruntime``."""
BIAS_OPTIMIZER = "WeightBiasQuantization"
"""It gives a convolution's bias the product of two half scales, in half: 1e-5 has lost its bits by
then, and outputs shift (ONNX Runtime 1.31)."""
SMALLEST_SCALE = 2.0**-14
"""Smallest half with all its bits; below, a scale would lose some, and 6e-8 later all."""


def cast_half(
    model: ir.Model,
    plan: Plan = SAFE,
    *,
    keep: tuple[str, ...] = (),
    interface: str = "float",
) -> ir.Model:
    """Turn a float32 graph into a half one, in place.

    Weights of products are stored in half. In Q/DQ graphs a scale has the type of the value it
    scales, as ONNX asks, and the same number on both sides of a pair; integers stay as they are,
    except in channels whose scale half cannot hold, which are quantized again.

    Args:
        model: With float32 values, from :func:`samforge.transform.onnx.convert.onnx_from_exported`.
        plan: What stays float.
        keep: More module path patterns that stay float.
        interface: Type of floating point inputs and outputs, ``float`` or ``half``.

    Returns:
        The same model.

    Raises:
        SettingError: ``interface`` is another word, or a pattern of ``keep`` matches no node.
    """
    if interface not in TYPES:
        raise SettingError(f"interface is half or float, got {interface!r}.")
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    _check_patterns(model, keep)
    plan = replaced(plan, keep=(*plan.keep, *keep))
    _fit_scales(model)
    types = _types(model, plan)
    casts = _Casts(model)
    _interface_in(model, TYPES[interface])
    for node in list(model.graph):
        _retype(node, types.get(node), casts)
    _interface_out(model, TYPES[interface], casts)
    _drop_idle_casts(model)
    tidy(model)
    if any(node.op_type == "QuantizeLinear" for node in model.graph):
        note(model, [(DISABLED_NOTE, BIAS_OPTIMIZER)])
    return model


def _types(model: ir.Model, plan: Plan) -> dict[ir.Node, ir.DataType]:
    """Number format of every node on floats; movers take what all their readers want."""
    core = attention_core(model)
    types: dict[ir.Node, ir.DataType] = {}
    for node in model.graph:
        if _is_floating(node):
            planned = planned_type(node, plan, core)
            if any(_unfit(value) for value in node.inputs):
                planned = FLOAT
            if planned is not None:
                types[node] = planned
    for node in reversed(list(model.graph)):
        if node in types or not _is_floating(node):
            continue
        wanted = {types.get(r) for value in node.outputs for r in consumers(value)} - {None}
        if any(value.is_graph_output() for value in node.outputs):
            wanted.add(FLOAT)
        if len(wanted) == 1 and (only := wanted.pop()) is not None:
            types[node] = only
        elif node.op_type == "DequantizeLinear" or len(wanted) > 1:
            types[node] = HALF
    return types


def _is_floating(node: ir.Node) -> bool:
    return any(value.dtype in FLOATS for value in node.outputs) or (
        node.op_type == "QuantizeLinear"
    )


class _Casts:
    """Values in the other type, each cast once."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._made: dict[tuple[ir.Value, ir.DataType, bool], ir.Value] = {}

    def of(self, value: ir.Value, dtype: ir.DataType, *, mask: bool = False) -> ir.Value:
        """The value in a type; constants are stored in it."""
        if value.dtype == dtype:
            return value
        key = (value, dtype, mask)
        if key not in self._made:
            array = array_of(value)
            self._made[key] = (
                self._cast(value, dtype) if array is None else self._stored(value, array, dtype)
            )
        return self._made[key]

    def _stored(self, value: ir.Value, array: Array, dtype: ir.DataType) -> ir.Value:
        if dtype == HALF:
            array = np.where(array < -LARGEST_HALF, array.dtype.type(MASKED), array)
        suffix = "half" if dtype == HALF else "float"
        return constant(self._model, f"{value.name}_{suffix}", array.astype(dtype.numpy()))

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        cast = ir.node("Cast", [value], {"to": int(dtype)})
        cast.outputs[0].dtype, cast.outputs[0].shape = dtype, value.shape
        made_by = value.producer()
        if made_by is not None:
            made_by.append(cast)
            cast.metadata_props.update(made_by.metadata_props)
        else:
            self._model.graph.insert_before(self._model.graph[0], cast)
        return cast.outputs[0]


def _retype(node: ir.Node, dtype: ir.DataType | None, casts: _Casts) -> None:
    """Give a node its inputs in its type, and its outputs that type."""
    if node.op_type == "Cast":
        _retype_cast(node, dtype)
        return
    floating = [index for index, value in enumerate(node.inputs) if value and value.dtype in FLOATS]
    if dtype is None:
        if not floating:
            return
        # Comparisons, or movers nobody wants in a certain type: float for the first.
        first = node.inputs[floating[0]]
        moves = node.op_type in MOVES | {"QuantizeLinear"}
        dtype = first.dtype if moves and first is not None and first.dtype else FLOAT
    for index in floating:
        value = node.inputs[index]
        if value is not None:
            node.replace_input_with(index, casts.of(value, dtype))
    for value in node.outputs:
        if value.dtype in FLOATS:
            value.dtype = dtype


def _retype_cast(node: ir.Node, dtype: ir.DataType | None) -> None:
    if node.outputs[0].dtype in FLOATS and dtype is not None:
        node.attributes["to"] = ir.AttrInt64("to", int(dtype))
        node.outputs[0].dtype = dtype


def _unfit(value: ir.Value | None) -> bool:
    """A constant that half cannot hold: too large, or a factor or scale that would lose its bits.

    Very negative ones are masks, and weights may round to zero.
    """
    array = array_of(value)
    if array is None or value is None or value.dtype not in FLOATS or array.size == 0:
        return False
    small = array.size == 1 and 0 < abs(float(array.reshape(-1)[0])) < SMALLEST_SCALE
    return small or bool(array.max() > LARGEST_HALF)


def _drop_idle_casts(model: ir.Model) -> None:
    """Remove casts to the type a value already has."""
    for node in list(model.graph):
        given, result = node.inputs[0] if node.inputs else None, node.outputs[0]
        if node.op_type != "Cast" or given is None or given.dtype != result.dtype:
            continue
        if result.is_graph_output():
            continue
        result.replace_all_uses_with(given)


def _interface_in(model: ir.Model, dtype: ir.DataType) -> None:
    for value in model.graph.inputs:
        if value.dtype in FLOATS:
            value.dtype = dtype


def _interface_out(model: ir.Model, dtype: ir.DataType, casts: _Casts) -> None:
    for index, value in enumerate(model.graph.outputs):
        if value.dtype not in FLOATS or value.dtype == dtype:
            continue
        name, result = value.name, casts.of(value, dtype)
        value.name, result.name = f"{name}_inner", name
        model.graph.outputs[index] = result


def _fit_scales(model: ir.Model) -> None:
    """Round scales to what half holds, so that both sides of a pair have the same number."""
    rounded: dict[ir.Value, ir.Value] = {}
    for node in model.graph:
        if node.op_type not in {"QuantizeLinear", "DequantizeLinear"}:
            continue
        if node.op_type == "DequantizeLinear" and is_weight(node):
            _fit_weight(model, node)
            continue
        scale = node.inputs[1]
        array = array_of(scale)
        if scale is None or array is None or float(array) < SMALLEST_SCALE:
            continue
        if scale not in rounded:
            exact = array.astype(np.float16).astype(np.float32)
            rounded[scale] = constant(model, f"{scale.name}_fits", exact)
        node.replace_input_with(1, rounded[scale])


def _fit_weight(model: ir.Model, node: ir.Node) -> None:
    """Quantize channels again whose scale is too small for half."""
    weight = read_weight(node)
    scales = np.maximum(weight.scales, SMALLEST_SCALE).astype(np.float16).astype(np.float32)
    if (weight.scales < SMALLEST_SCALE).any():
        shape = [1] * weight.integers.ndim
        if scales.size > 1:
            shape[weight.axis] = -1
        again = weight.floats / scales.reshape(shape)
        if weight.integers.dtype == np.int8:
            again = np.rint(again).clip(-127, 127)
        small = np.broadcast_to((weight.scales < SMALLEST_SCALE).reshape(shape), again.shape)
        integers = np.where(small, again, weight.integers).astype(weight.integers.dtype)
        node.replace_input_with(0, constant(model, f"{layer_path(node)}.weight_fits", integers))
    node.replace_input_with(1, constant(model, f"{layer_path(node)}.scales_fit", scales))


def _check_patterns(model: ir.Model, keep: tuple[str, ...]) -> None:
    paths = {layer_path(node) for node in model.graph}
    for pattern in keep:
        if not any(fnmatch(path, pattern) for path in paths):
            near = ", ".join(sorted(paths)[:6])
            raise SettingError(f"keep '{pattern}' matches no layer. Layers: {near}, …")
