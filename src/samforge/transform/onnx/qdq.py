"""Reads Q/DQ graphs: which layers are quantized, by which nodes, with which constants.

What the quantizer emits, and what the flavours start from: int8 activations per tensor with zero
point 0, int8 weights per output channel, a QuantizeLinear and DequantizeLinear pair in front of
each quantized input, and float everywhere else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from samforge.core.session import Array
from samforge.transform.onnx.graph import (
    array_of,
    constant,
    layer_path,
    only_consumer,
    producer,
    replace,
    set_type,
    tidy,
)

WEIGHTED = ("MatMul", "Gemm", "Conv", "ConvTranspose")
"""Operators with weights that can be quantized."""
INTEGERS = {ir.DataType.INT8, ir.DataType.UINT8}


@dataclass(frozen=True, kw_only=True, slots=True)
class Weight:
    """A quantized weight, read."""

    node: ir.Node
    """Its DequantizeLinear."""
    integers: Array
    """int8, as it is stored."""
    scales: Array
    """float32, one a channel, or a single one."""
    axis: int
    """Axis of the channels."""

    @property
    def floats(self) -> Array:
        """The weight in float32."""
        shape = [1] * self.integers.ndim
        if self.scales.size > 1:
            shape[self.axis] = -1
        return self.integers.astype(np.float32) * self.scales.reshape(shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizedLayer:
    """A layer whose input and weight are both quantized."""

    node: ir.Node
    """MatMul, Gemm, Conv or ConvTranspose."""
    activation: ir.Node
    """DequantizeLinear of its input."""
    weight: ir.Node
    """DequantizeLinear of its weight; a Transpose may follow until it is folded."""
    bias_add: ir.Node | None
    """Addition of a constant vector right behind a MatMul, or None."""

    @property
    def path(self) -> str:
        """Module path of the layer."""
        return layer_path(self.node)

    @property
    def bias(self) -> Array | None:
        """The layer's bias, wherever it stands."""
        if self.bias_add is not None:
            return _vector(self.bias_add)
        if self.node.op_type != "MatMul" and len(self.node.inputs) > 2:
            return array_of(self.node.inputs[2])
        return None

    @property
    def last(self) -> ir.Node:
        """The node whose output is the layer's output."""
        return self.bias_add or self.node

    def read_weight(self) -> Weight:
        """The weight's constants."""
        return read_weight(self.weight)


def quantized_layers(model: ir.Model) -> tuple[QuantizedLayer, ...]:
    """Find every layer with a quantized input and a quantized weight, in the graph's order."""
    found = []
    for node in model.graph:
        if node.op_type not in WEIGHTED or node.domain:
            continue
        activation = producer(node.inputs[0], "DequantizeLinear")
        weight = _weight(node.inputs[1])
        if activation is None or weight is None or not is_weight(weight) or is_weight(activation):
            continue
        found.append(
            QuantizedLayer(
                node=node, activation=activation, weight=weight, bias_add=_bias_add(node)
            )
        )
    return tuple(found)


def is_weight(node: ir.Node) -> bool:
    """Whether a DequantizeLinear reads a constant."""
    return array_of(node.inputs[0]) is not None


def read_weight(node: ir.Node) -> Weight:
    """Constants of a weight's DequantizeLinear."""
    integers, scales = array_of(node.inputs[0]), array_of(node.inputs[1])
    assert integers is not None and scales is not None  # noqa: S101, PT018  # see is_weight
    axis = node.attributes.get_int("axis", 1)
    return Weight(node=node, integers=integers, scales=scales, axis=axis % max(integers.ndim, 1))


def scale_and_zero(node: ir.Node) -> tuple[float, int]:
    """Scale and zero point of a per-tensor QuantizeLinear or DequantizeLinear."""
    scale = array_of(node.inputs[1])
    zero = array_of(node.inputs[2]) if len(node.inputs) > 2 else None
    assert scale is not None  # noqa: S101  # the quantizer writes constants
    return float(scale), 0 if zero is None else int(zero)


def activation_nodes(model: ir.Model) -> tuple[ir.Node, ...]:
    """Every QuantizeLinear and DequantizeLinear of computed values."""
    return tuple(
        node
        for node in model.graph
        if node.op_type == "QuantizeLinear"
        or (node.op_type == "DequantizeLinear" and not is_weight(node))
    )


def fold_weight_transposes(model: ir.Model) -> ir.Model:
    """Store weights the way their products read them.

    The exporter transposes a linear's dequantized weight at run time. Runtimes look for the
    DequantizeLinear right in front of the product, and would otherwise transpose in every call.
    """
    for node in list(model.graph):
        weight = producer(node.inputs[0], "DequantizeLinear") if node.inputs else None
        if node.op_type != "Transpose" or weight is None or not is_weight(weight):
            continue
        content = read_weight(weight)
        perm = [int(axis) for axis in node.attributes["perm"].as_ints()]
        name = weight.inputs[0].name if weight.inputs[0] is not None else None
        stored = constant(model, f"{name or 'weight'}_t", content.integers.transpose(perm))
        folded = ir.node(
            "DequantizeLinear",
            [stored, *weight.inputs[1:]],
            {"axis": perm.index(content.axis)} if content.scales.size > 1 else {},
        )
        set_type(folded.outputs[0], node.outputs[0].dtype)
        replace([node], [folded], folded.outputs[0])
    tidy(model)
    return model


def restore(model: ir.Model, layer: QuantizedLayer) -> None:
    """Take a layer back to float: half a quantization costs time and accuracy and saves nothing.

    Others may still read its quantized input.
    """
    quantize = producer(layer.activation.inputs[0], "QuantizeLinear")
    if quantize is not None and quantize.inputs[0] is not None:
        layer.node.replace_input_with(0, quantize.inputs[0])
    weight = layer.read_weight()
    stored = weight.node.inputs[0]
    name = stored.name if stored is not None else layer.path
    layer.node.replace_input_with(1, constant(model, f"{name}_float", weight.floats))


def _weight(value: ir.Value | None) -> ir.Node | None:
    """DequantizeLinear of a weight; the exporter transposes it for a MatMul."""
    moved = producer(value, "Transpose")
    return producer(moved.inputs[0] if moved is not None else value, "DequantizeLinear")


def _bias_add(node: ir.Node) -> ir.Node | None:
    if node.op_type != "MatMul":
        return None
    add = only_consumer(node.outputs[0], "Add")
    return add if add is not None and _vector(add) is not None else None


def _vector(add: ir.Node) -> Array | None:
    """The constant vector that a node adds."""
    for value in add.inputs:
        array = array_of(value)
        if array is not None and array.ndim == 1:
            return array
    return None
