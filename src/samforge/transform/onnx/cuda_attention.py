"""Explicit attention -> ONNX Runtime's fused attention on CUDA, with a mask or bias or without.

Written out, the scores of a global layer at 1008 pixels are 16 x 5184 x 5184 numbers, and moving
them takes longer than both products. MultiHeadAttention of the domain ``com.microsoft`` runs as
flash attention in half, and as memory-efficient attention in float32. With a bias it is the
memory-efficient kernel where that takes the rows, else products around a softmax in one operator.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from samforge.transform.onnx.attention_kernels import (
    DOMAIN,
    HEADS_FIRST,
    KEYS,
    Rows,
    perm_of,
    rows_of,
    scale_of,
    turned_rows,
)
from samforge.transform.onnx.graph import constant, only_consumer, producer, replace, tidy

KEYS_AT_ONCE = [0, 2, 3, 1]
"""(B, S, heads, D) -> (B, heads, D, S): both transposes of the keys in one."""
ALIGNED = 8
"""Halves that the memory-efficient kernel loads at once. It asks for queries in such groups, and
reads rows of a bias, one a query, as if keys came in them, too."""


def fuse_cuda_attention(model: ir.Model) -> ir.Model:
    """Replace every attention whose sizes are fixed, in place.

    Left as it is: attention over a dynamic number of tokens, and with a bias whose rows the kernel
    would read unaligned.
    """
    spread: dict[tuple[ir.Value, int], ir.Value] = {}
    fused = [_fuse(model, node, spread) for node in list(model.graph) if node.op_type == "Softmax"]
    if any(fused):
        tidy(model)
        model.opset_imports[DOMAIN] = 1
    return model


def _fuse(model: ir.Model, softmax: ir.Node, spread: dict[tuple[ir.Value, int], ir.Value]) -> bool:
    scores, bias = _scores(softmax)
    context = only_consumer(softmax.outputs[0], "MatMul")
    if scores is None or context is None or context.inputs[0] is not softmax.outputs[0]:
        return False
    back = only_consumer(context.outputs[0], "Transpose")
    whole = only_consumer(back.outputs[0], "Reshape") if back is not None else None
    if back is None or whole is None or perm_of(back) != HEADS_FIRST:
        return False
    scale, queries = scale_of(scores.inputs[0])
    q, k, v = rows_of(queries), _keys(scores.inputs[1]), rows_of(context.inputs[1])
    if q is None or k is None or v is None:
        return False
    if not (q.heads == k.heads == v.heads and q.size == k.size and k.tokens == v.tokens):
        return False
    nodes: list[ir.Node] = []
    given: list[ir.Value | None] = [turned_rows(model, one, nodes) for one in (q, k, v)]
    if bias is not None:
        rows = _bias(model, bias, (q, k), spread, nodes)
        if rows is None:
            return False
        given += [None, None, rows]  # no bias of the linears, no padding of the keys
    attention = ir.node(
        "MultiHeadAttention", given, {"num_heads": q.heads, "scale": scale}, domain=DOMAIN
    )
    attention.outputs[0].dtype = ir.DataType.FLOAT
    shaped = ir.node("Reshape", [attention.outputs[0], whole.inputs[1]], dict(whole.attributes))
    shaped.outputs[0].dtype = ir.DataType.FLOAT
    replace([context, back, whole], [*nodes, attention, shaped], shaped.outputs[0])
    return True


def _scores(softmax: ir.Node) -> tuple[ir.Node | None, ir.Value | None]:
    """The product of queries and keys, and what is added to it."""
    if (product := producer(softmax.inputs[0], "MatMul")) is not None:
        return product, None
    total = producer(softmax.inputs[0], "Add")
    if total is not None:
        for value, other in (total.inputs, reversed(total.inputs)):
            if (product := producer(value, "MatMul")) is not None:
                return product, other
    return None, None


def _keys(value: ir.Value | None) -> Rows | None:
    transposed = producer(value, "Transpose")
    if transposed is None:
        return None
    if perm_of(transposed) == KEYS:
        return rows_of(transposed.inputs[0])
    return rows_of(value, perm=KEYS_AT_ONCE)


def _bias(
    model: ir.Model,
    bias: ir.Value,
    sides: tuple[Rows, Rows],
    spread: dict[tuple[ir.Value, int], ir.Value],
    nodes: list[ir.Node],
) -> ir.Value | None:
    """A bias with a row for every query, or None where no kernel takes it."""
    queries, keys = sides
    shape = list(bias.shape or ())
    if len(shape) != 4 or shape[3] != keys.tokens or shape[1] not in (1, queries.heads):
        return None
    if queries.tokens % ALIGNED == 0 and keys.tokens % ALIGNED:
        return None
    if shape[2] == queries.tokens:
        return bias
    if shape[2] != 1:
        return None
    key = (bias, queries.tokens)
    if key not in spread:  # the first in the order of the graph: later ones may read it
        size = constant(model, "rows_of_bias", np.array([1, 1, queries.tokens, 1]))
        nodes.append(ir.node("Expand", [bias, size]))
        spread[key] = nodes[-1].outputs[0]
        spread[key].dtype = ir.DataType.FLOAT
        spread[key].shape = ir.Shape([*shape[:2], queries.tokens, shape[3]])
    return spread[key]
