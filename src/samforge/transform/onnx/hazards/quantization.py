"""Rules about QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from samforge.transform.onnx.hazards.rule import Rule, named
from samforge.transform.onnx.planned import format_of

PAIR = {"QuantizeLinear", "DequantizeLinear"}
FUSABLE = {"MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "Attention"}
"""What TensorRT fuses with the DequantizeLinear in front of it."""
MOVES = {"Transpose", "Reshape", "Squeeze", "Unsqueeze", "MaxPool"}
"""What commutes with quantization, so that TensorRT looks through it."""
FP8 = {ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E5M2}
FP8_READERS = {*PAIR, *MOVES, "Concat", "Flatten", "Identity", "Shape"} - {"MaxPool"}
"""What may read FP8 values: what TensorRT's error message lists, and Q/DQ for its zero point."""
UNSIGNED = {ir.DataType.UINT8, ir.DataType.UINT4}


def _zero_point(model: ir.Model) -> Iterator[str]:
    for node in model.graph.all_nodes():
        if node.op_type not in PAIR or len(node.inputs) < 3:
            continue
        value = node.inputs[2]
        if value is None or value.dtype in UNSIGNED:
            continue  # the rule of unsigned types says it
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is None:
            yield f"{named(node)} computes its zero point"
        elif tensor.numpy().astype("float32").any():
            yield named(node)


def _unsigned(model: ir.Model) -> Iterator[str]:
    for node in model.graph.all_nodes():
        if node.op_type not in PAIR:
            continue
        zero = node.inputs[2] if len(node.inputs) > 2 else None
        values = (zero, node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0])
        if any(value is not None and value.dtype in UNSIGNED for value in values):
            yield named(node)


def _fp8_arithmetic(model: ir.Model) -> Iterator[str]:
    for node in model.graph.all_nodes():
        if node.domain or node.op_type in FP8_READERS:
            continue  # an operator of another domain is a plugin
        if any(value is not None and value.dtype in FP8 for value in node.inputs):
            yield named(node)


def _lonely_dequantize(model: ir.Model) -> Iterator[str]:
    for node in model.graph.all_nodes():
        if node.op_type == "DequantizeLinear" and not _reaches_product(node):
            yield named(node)


def _reaches_product(node: ir.Node) -> bool:
    waiting = list(node.outputs)
    while waiting:
        for user in waiting.pop().consumers():
            if user.op_type in FUSABLE:
                return True
            if user.op_type in MOVES:
                waiting.extend(user.outputs)
    return False


def _transposed_convolution(model: ir.Model) -> Iterator[str]:
    for node in model.graph.all_nodes():
        if node.op_type == "ConvTranspose" and format_of(node) in ("int8", "fp8"):
            yield named(node)


RULES = (
    Rule(
        id="zero-point",
        severity="refused",
        explanation="TensorRT quantizes symmetrically: a zero point other than 0 is refused. "
        "Calibrate symmetric ranges.",
        reference="TensorRT documentation: explicit quantization",
        find=_zero_point,
    ),
    Rule(
        id="asymmetric-activations",
        severity="refused",
        explanation="Unsigned activations are a form for processors (ONNX Runtime, VNNI); "
        "TensorRT wants signed ones. Build the graph for a TensorRT target.",
        reference="TensorRT documentation: explicit quantization",
        find=_unsigned,
    ),
    Rule(
        id="fp8-arithmetic",
        severity="refused",
        explanation="TensorRT reads FP8 values through DequantizeLinear and in no other way: a "
        "Cast of them stops the build. Give it Q/DQ; samforge makes FP8 graphs of int8 ones.",
        reference="error message of TensorRT for RTX 1.7",
        find=_fp8_arithmetic,
    ),
    Rule(
        id="dequantize-alone",
        severity="slow",
        explanation="A DequantizeLinear that reaches no product or convolution is a kernel of its "
        "own, and so is the QuantizeLinear before it. Quantize the inputs of products only.",
        reference="TensorRT documentation: Q/DQ placement",
        find=_lonely_dequantize,
    ),
    Rule(
        id="transposed-convolution-8-bit",
        severity="slow",
        explanation="There is no 8-bit kernel of ConvTranspose: it runs in half with the cost of "
        "quantization on top. Leave it in half.",
        reference="found in engines of TensorRT for RTX 1.7",
        find=_transposed_convolution,
    ),
)
"""Rules of this file."""
