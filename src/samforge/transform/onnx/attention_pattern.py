"""Finds attention in an ONNX graph: two matrix products around a softmax."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

BEFORE = {"Add", "Sub", "Mul", "Div", "Cast", "Where", "Reshape", "Clip", "Min", "Max"}
"""What stands between the scores and the softmax: scale, mask, bias."""
AFTER = {"Cast", "Relu", "Reshape", "Transpose", "QuantizeLinear", "DequantizeLinear", "Identity"}
"""What stands between the softmax and the second product."""
MOVES = {"Cast", "Reshape", "Transpose", "Identity", "Squeeze", "Unsqueeze", "Expand"}
"""Operators that move values without changing them."""
SMALLEST_HEAD = 9
"""Heads of fewer channels run as separate products (NVIDIA/TensorRT#4826, and engines of 1.7)."""
HALF = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}


@dataclass(frozen=True, kw_only=True, slots=True)
class Attention:
    """One attention: ``softmax(query key) value``."""

    scores: ir.Node
    """The product of queries and keys."""
    softmax: ir.Node
    """Over the keys."""
    context: ir.Node
    """The product of probabilities and values."""
    between: tuple[ir.Node, ...]
    """What lies between softmax and context; fusion survives a Cast and nothing else."""

    @property
    def tokens(self) -> int | None:
        """Number of keys, or None where it is dynamic or unknown."""
        shape = self.scores.outputs[0].shape or self.softmax.outputs[0].shape
        last = shape[-1] if shape else None
        return last if isinstance(last, int) else None

    @property
    def operands(self) -> tuple[ir.Value, ...]:
        """Queries, keys and values, as they enter the products."""
        probabilities = self.between[-1] if self.between else self.softmax
        values = [v for v in self.context.inputs if v and v.producer() is not probabilities]
        return (*(v for v in self.scores.inputs if v is not None), *values)

    @property
    def half(self) -> bool:
        """Whether both products take halves, so that TensorRT's fused kernels fit."""
        return all(value.dtype in HALF for value in self.operands)

    @property
    def head_size(self) -> int | None:
        """Channels of a head, or None where they are unknown."""
        shape = self.operands[0].shape
        last = shape[-1] if shape else None
        return last if isinstance(last, int) else None

    @property
    def fusable(self) -> bool:
        """Whether TensorRT's pattern matches: halves, large heads, nothing between but casts."""
        size = self.head_size
        return (
            self.half
            and (size is None or size >= SMALLEST_HEAD)
            and all(node.op_type == "Cast" for node in self.between)
        )


def attentions(model: ir.Model) -> tuple[Attention, ...]:
    """Find every attention of the graph, in order."""
    found = (_attention(node) for node in model.graph.all_nodes() if node.op_type == "Softmax")
    return tuple(attention for attention in found if attention is not None)


def sources(value: ir.Value, through: set[str]) -> Iterator[ir.Value]:
    """Values that ``value`` comes from when operators of ``through`` are looked through.

    Constants and initializers are not followed.
    """
    waiting, seen = [value], set[int]()
    while waiting:
        current = waiting.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        node = current.producer()
        if node is not None and node.op_type in through:
            waiting.extend(given for given in node.inputs if given is not None)
        else:
            yield current


def _attention(softmax: ir.Node) -> Attention | None:
    given = softmax.inputs[0]
    if given is None:
        return None
    products = [value.producer() for value in sources(given, BEFORE)]
    scores = next((node for node in products if node and node.op_type == "MatMul"), None)
    between: list[ir.Node] = []
    value = softmax.outputs[0]
    while scores is not None:
        users = list(value.consumers())
        if len(users) != 1:
            return None
        (node,) = users
        if node.op_type == "MatMul":
            return Attention(scores=scores, softmax=softmax, context=node, between=tuple(between))
        if node.op_type not in AFTER:
            return None
        between.append(node)
        value = node.outputs[0]
    return None
