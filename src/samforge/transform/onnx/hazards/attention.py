"""Rules about attention: what breaks the fused kernels, and what keeps them from being used."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from samforge.transform.onnx.attention_pattern import HALF, MOVES, attentions, sources
from samforge.transform.onnx.hazards.rule import Rule, named
from samforge.transform.onnx.planned import format_of

LONGEST_INT8 = 512
"""Tokens up to which TensorRT has a fused int8 attention."""
ROTARY = {"Concat", "Slice", "Split", "Neg", *MOVES}
"""What turns half of the channels: the way from a value to its rotated copy."""


def _transposed_input(model: ir.Model) -> Iterator[str]:
    inputs = {id(value) for value in model.graph.inputs}
    for attention in attentions(model):
        if not attention.fusable:
            continue
        for operand in attention.operands:
            if any(id(value) in inputs for value in sources(operand, MOVES | {"Mul"})) and (
                _passes_transpose(operand)
            ):
                yield f"{named(attention.scores)} reads the network's input"
                break


def _passes_transpose(operand: ir.Value) -> bool:
    value: ir.Value | None = operand
    while value is not None:
        node = value.producer()
        if node is None or node.op_type not in MOVES | {"Mul"}:
            return False
        if node.op_type == "Transpose":
            return True
        value = node.inputs[0]
    return False


def _rotary_half(model: ir.Model) -> Iterator[str]:
    for attention in attentions(model):
        if not attention.fusable:
            continue
        for operand in attention.operands[:2]:
            rotations = [v.producer() for v in sources(operand, MOVES | {"Mul"})]
            if any(
                node is not None and _is_rotation(node) and node.outputs[0].dtype in HALF
                for node in rotations
            ):
                yield f"{named(attention.scores)} behind half-precision rotary"
                break


def _is_rotation(node: ir.Node) -> bool:
    """``x * cos + rotated(x) * sin``: a sum of two products, one of a value with negated halves."""
    if node.op_type != "Add":
        return False
    products = [value.producer() for value in node.inputs if value is not None]
    if len(products) != 2 or any(p is None or p.op_type != "Mul" for p in products):
        return False
    return any(
        _passes(value, "Neg", ROTARY)
        for product in products
        if product is not None
        for value in product.inputs
        if value is not None
    )


def _passes(value: ir.Value, operator: str, through: set[str]) -> bool:
    waiting, seen = [value], set[int]()
    while waiting:
        node = waiting.pop().producer()
        if node is None or id(node) in seen or node.op_type not in through:
            continue
        if node.op_type == operator:
            return True
        seen.add(id(node))
        waiting.extend(given for given in node.inputs if given is not None)
    return False


def _int8_long(model: ir.Model) -> Iterator[str]:
    for attention in attentions(model):
        if "int8" not in (format_of(attention.scores), format_of(attention.context)):
            continue
        tokens = attention.tokens
        if tokens is None or tokens > LONGEST_INT8:
            many = "an open number of" if tokens is None else str(tokens)
            yield f"{named(attention.scores)} over {many} tokens"


def _not_half(model: ir.Model) -> Iterator[str]:
    """Attention in float32 inside a graph that computes in halves or fewer bits elsewhere."""
    if not _is_reduced(model):
        return
    for attention in attentions(model):
        wide = [v.name for v in attention.operands if v.dtype == ir.DataType.FLOAT]
        deliberate = any(node.op_type == "Relu" for node in attention.between)
        if wide and not deliberate:
            yield f"{named(attention.softmax)}: {', '.join(map(str, wide))} in float32"


def _is_reduced(model: ir.Model) -> bool:
    return any(
        node.op_type == "QuantizeLinear"
        or (node.op_type in ("MatMul", "Gemm", "Conv") and node.outputs[0].dtype in HALF)
        for node in model.graph.all_nodes()
    )


def _attention_operator(model: ir.Model) -> Iterator[str]:
    for node in model.graph.all_nodes():
        if node.op_type == "Attention" and node.domain in ("", "ai.onnx"):
            given = node.inputs[0]
            if given is not None and given.dtype == ir.DataType.FLOAT:
                yield named(node)


RULES = (
    Rule(
        id="attention-input-transpose",
        severity="wrong",
        explanation="A network input that is transposed straight into fused attention is read with "
        "the wrong strides on 11.2. Put an addition or a product between, or transpose outside.",
        reference="NVIDIA/TensorRT#4826",
        find=_transposed_input,
    ),
    Rule(
        id="attention-rotary-half",
        severity="wrong",
        explanation="Rotary position encoding in half precision in front of fused attention loses "
        "the positions of far tokens, and is part of the fusion that goes wrong on compute "
        "capability 12.0. Rotate in float32 and cast the result.",
        reference="NVIDIA/TensorRT#4837",
        find=_rotary_half,
    ),
    Rule(
        id="attention-int8-long",
        severity="slow",
        explanation="There is no fused int8 attention over more than 512 tokens: three slow "
        "kernels run instead. Leave attention in halves.",
        reference="NVIDIA/TensorRT#2981, #3714, #3724",
        find=_int8_long,
    ),
    Rule(
        id="attention-not-half",
        severity="slow",
        explanation="Attention in float32 inside a graph of fewer bits is not fused. Cast queries, "
        "keys and values to half; the softmax may stay float32.",
        reference="TensorRT documentation: fused attention",
        find=_not_half,
    ),
    Rule(
        id="attention-operator-float",
        severity="slow",
        explanation="The operator Attention of opset 23 is fused in half precision only. Cast its "
        "inputs, or write the two products out.",
        reference="TensorRT documentation: fused attention",
        find=_attention_operator,
    ),
)
"""Rules of this file."""
