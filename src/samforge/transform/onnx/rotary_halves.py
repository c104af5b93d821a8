"""Rotary encoding over pairs of neighbours -> over halves of a head, by reordering weights.

Scores do not change when the channels of queries and keys are reordered alike. So the rows of their
linears' weights are, and what was every second channel becomes a contiguous half: the form that
OpenVINO has a kernel for, where pairs cost it four slow copies a layer (2026.4: a tenth of the
whole time). Only the order in which a score's 64 products are summed changes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from samforge.transform.onnx.graph import array_of, constant, consumers, producer, replace, tidy
from samforge.transform.onnx.qdq import is_weight, read_weight
from samforge.transform.onnx.rotary_pattern import Rotary, rotary_from_add


@dataclass(frozen=True, kw_only=True, slots=True)
class _Side:
    """Queries or keys of one attention."""

    add: ir.Node
    """The end of their rotary encoding."""
    rotary: Rotary
    linear: ir.Node
    """MatMul that makes them, perhaps with others."""
    bias: ir.Node
    """Addition of its bias."""
    first: int
    """First of their output channels."""
    heads: int
    size: int
    """Channels of a head."""


def rotary_by_halves(model: ir.Model) -> ir.Model:
    """Reorder every rotary encoding whose two linears can be reordered, in place.

    Args:
        model: With the transposes of weights folded; see
            :func:`samforge.transform.onnx.qdq.fold_weight_transposes`.
    """
    for scores in [node for node in model.graph if node.op_type == "MatMul"]:
        if not any(reader.op_type == "Softmax" for reader in consumers(scores.outputs[0])):
            continue
        sides = [_side(value) for value in scores.inputs]
        queries, keys = sides
        if queries is None or keys is None:
            continue
        for side in (queries, keys):
            _reorder(model, side)
            _by_halves(model, side)
    tidy(model)
    return model


def _side(value: ir.Value | None) -> _Side | None:
    """Follow queries or keys from the scores back to their linear."""
    add = producer(value, "Mul", "Transpose", "Add")
    while add is not None and add.op_type != "Add":
        if len(consumers(add.outputs[0])) != 1:
            return None
        add = next((n for v in add.inputs if (n := producer(v, "Mul", "Transpose", "Add"))), None)
    rotary = rotary_from_add(add) if add is not None else None
    if add is None or rotary is None or len(consumers(add.outputs[0])) != 1:
        return None
    moved = producer(rotary.value, "Transpose")
    split = producer(moved.inputs[0], "Reshape") if moved is not None else None
    shape = list(split.outputs[0].shape or ()) if split is not None else []
    if split is None or len(shape) != 4 or len(consumers(split.outputs[0])) != 1:
        return None
    heads, size = shape[2:]
    if not isinstance(heads, int) or not isinstance(size, int):
        return None
    found = _linear(split.inputs[0], heads * size)
    if found is None:
        return None
    bias, linear, first = found
    return _Side(
        add=add, rotary=rotary, linear=linear, bias=bias, first=first, heads=heads, size=size
    )


def _linear(value: ir.Value | None, width: int) -> tuple[ir.Node, ir.Node, int] | None:
    """Bias addition, MatMul and first channel of what a linear, or a part of one, gives."""
    first = 0
    if value is None or len(consumers(value)) != 1:
        return None
    parts = producer(value, "Split")
    if parts is not None:
        if parts.attributes.get_int("axis", 0) != -1 and not _last_axis(parts):
            return None
        first = width * list(parts.outputs).index(value)
        widths = [output.shape[-1] if output.shape else None for output in parts.outputs]
        if any(one != width for one in widths):
            return None
        value = parts.inputs[0]
    bias = producer(value, "Add")
    linear = next((n for v in bias.inputs if (n := producer(v, "MatMul"))), None) if bias else None
    if bias is None or linear is None:
        return None
    weight = producer(linear.inputs[1], "DequantizeLinear")
    stored = array_of(linear.inputs[1]) is not None or (weight is not None and is_weight(weight))
    return (bias, linear, first) if stored else None


def _last_axis(node: ir.Node) -> bool:
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    return shape is not None and node.attributes.get_int("axis", 0) == len(shape) - 1


def _reorder(model: ir.Model, side: _Side) -> None:
    """Move the second of each pair behind the firsts, in the weight's and bias's channels."""
    head = np.concatenate([np.arange(0, side.size, 2), np.arange(1, side.size, 2)])
    order = side.first + (np.arange(side.heads)[:, None] * side.size + head).reshape(-1)
    for index, value in enumerate(side.bias.inputs):
        bias = array_of(value)
        if bias is not None:
            side.bias.replace_input_with(index, _permuted(model, value, bias, order))
    weight = producer(side.linear.inputs[1], "DequantizeLinear")
    if weight is None:
        given = side.linear.inputs[1]
        array = array_of(given)
        assert array is not None  # noqa: S101  # see _linear
        side.linear.replace_input_with(1, _permuted(model, given, array, order))
        return
    content = read_weight(weight)
    own = ir.node("DequantizeLinear", list(weight.inputs), dict(weight.attributes))
    own.outputs[0].dtype, own.outputs[0].shape = ir.DataType.FLOAT, weight.outputs[0].shape
    own.replace_input_with(0, _permuted(model, weight.inputs[0], content.integers, order))
    if content.scales.size > 1:
        own.replace_input_with(1, _permuted(model, weight.inputs[1], content.scales, order))
    weight.append(own)
    side.linear.replace_input_with(1, own.outputs[0])


def _permuted(
    model: ir.Model, value: ir.Value | None, array: np.ndarray, order: np.ndarray
) -> ir.Value:
    """The last axis in the new order; channels outside of it stay."""
    channels = np.arange(array.shape[-1])
    channels[np.sort(order)] = order
    name = value.name if value is not None else None
    return constant(model, f"{name or 'weight'}_halves", array[..., channels])


def _by_halves(model: ir.Model, side: _Side) -> None:
    rotary, dtype = side.rotary, side.add.outputs[0].dtype or ir.DataType.FLOAT
    # OpenVINO looks for tables of four axes and a factor of -1.
    tables = [
        constant(model, f"rotary_{name}_halves", np.concatenate([table, table], axis=1)[None, None])
        for name, table in (("cos", rotary.cos), ("sin", rotary.sin))
    ]
    minus = constant(model, "minus_one", np.full(1, -1, rotary.cos.dtype))
    halves = ir.node("Split", [rotary.value], {"axis": 3, "num_outputs": 2}, num_outputs=2)
    negative = ir.node("Mul", [halves.outputs[1], minus])
    rotated = ir.node("Concat", [negative.outputs[0], halves.outputs[0]], {"axis": -1})
    straight = ir.node("Mul", [rotary.value, tables[0]])
    turned = ir.node("Mul", [rotated.outputs[0], tables[1]])
    total = ir.node("Add", [straight.outputs[0], turned.outputs[0]])
    nodes = [halves, negative, rotated, straight, turned, total]
    for node in nodes:
        for output in node.outputs:
            output.dtype = dtype
    replace([side.add], nodes, total.outputs[0])
