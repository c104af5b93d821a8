"""What an engine built from a graph is planned to compute in which number format."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from samforge.core.computation import Computation
from samforge.transform.onnx.attention_pattern import attentions

PRODUCTS = {"MatMul", "Gemm", "Einsum"}
CONVOLUTIONS = {"Conv", "ConvTranspose"}
NAMES = {
    ir.DataType.FLOAT: "fp32",
    ir.DataType.FLOAT16: "fp16",
    ir.DataType.BFLOAT16: "bf16",
    ir.DataType.INT8: "int8",
    ir.DataType.UINT8: "int8",
    ir.DataType.FLOAT8E4M3FN: "fp8",
    ir.DataType.FLOAT8E5M2: "fp8",
}
MOVES = {"Transpose", "Reshape", "Squeeze", "Unsqueeze"}
"""What may stand between a DequantizeLinear and the product it belongs to."""


def computation_from_onnx(model: ir.Model) -> Computation:
    """Count matrix products, convolutions and fusable attentions by the format of their inputs.

    A product whose two sides come from DequantizeLinear counts as the quantized format.
    """
    fusable = [attention for attention in attentions(model) if attention.fusable]
    inside = {id(node) for a in fusable for node in (a.scores, a.context)}
    gemms: Counter[str] = Counter()
    convolutions: Counter[str] = Counter()
    for node in model.graph.all_nodes():
        if node.op_type in PRODUCTS and id(node) not in inside:
            gemms[format_of(node)] += 1
        elif node.op_type in CONVOLUTIONS:
            convolutions[format_of(node)] += 1
    return Computation(
        source="the graph",
        gemms=dict(sorted(gemms.items())),
        convolutions=dict(sorted(convolutions.items())),
        attentions=len(fusable),
    )


def format_of(node: ir.Node) -> str:
    """Number format a product or convolution is planned in."""
    first, second = (_quantized(value) for value in node.inputs[:2])
    if first is not None and second is not None:
        return first
    value = node.inputs[0]
    dtype = value.dtype if value is not None else None
    if dtype is None:
        dtype = node.outputs[0].dtype
    return NAMES.get(dtype, str(dtype)) if dtype is not None else "unknown"


def _quantized(value: ir.Value | None) -> str | None:
    """Format before the DequantizeLinear that a value comes from, or None without one."""
    while value is not None:
        node = value.producer()
        if node is None:
            return None
        if node.op_type == "DequantizeLinear":
            given = node.inputs[0]
            dtype = given.dtype if given is not None else None
            if dtype is None and given is not None:
                producer = given.producer()
                zero = producer.inputs[2] if producer and len(producer.inputs) > 2 else None
                dtype = zero.dtype if zero is not None else None
            return NAMES.get(dtype, "int8") if dtype is not None else "int8"
        if node.op_type not in MOVES:
            return None
        value = node.inputs[0]
    return None
