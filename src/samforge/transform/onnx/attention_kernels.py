"""Explicit attention -> ONNX Runtime's own attention and rotary operators.

Written out, attention over n tokens stores n x n scores: 1.6 GiB in each global layer at 1008
pixels, and more time goes into moving them than into products. MultiHeadAttention of the domain
``com.microsoft`` walks through them block by block inside of the processor's cache, on rows that
are not transposed; RotaryEmbedding turns those rows in one pass. The numbers are the same to 1e-6.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from samforge.core.session import Array
from samforge.transform.onnx.graph import array_of, constant, only_consumer, producer, replace, tidy
from samforge.transform.onnx.rotary_pattern import rotary_from_add

DOMAIN = "com.microsoft"
HEADS_FIRST = [0, 2, 1, 3]
"""(B, S, heads, D) -> (B, heads, S, D), and back."""
KEYS = [0, 1, 3, 2]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rows:
    """Queries, keys or values as (B, S, heads * D) rows."""

    value: ir.Value
    """Before it was split into heads."""
    heads: int
    tokens: int
    size: int
    """Of a head."""
    tables: tuple[Array, Array] | None = None
    """Cosine and sine of the rotary encoding that is applied to them."""


def fuse_attention(model: ir.Model) -> ir.Model:
    """Replace every attention without a mask whose sizes are fixed, in place.

    Attention with a mask or a bias stays as it is: the operator has no fast kernel for it.
    """
    fused = 0
    for node in list(model.graph):
        if node.op_type == "Softmax":
            fused += _fuse(model, node)
    if fused:
        tidy(model)
        model.opset_imports[DOMAIN] = 1
    return model


def _fuse(model: ir.Model, softmax: ir.Node) -> bool:
    scores = producer(softmax.inputs[0], "MatMul")
    context = only_consumer(softmax.outputs[0], "MatMul")
    if scores is None or context is None or context.inputs[0] is not softmax.outputs[0]:
        return False
    keys_transposed = producer(scores.inputs[1], "Transpose")
    back = only_consumer(context.outputs[0], "Transpose")
    if keys_transposed is None or back is None or _perm(back) != HEADS_FIRST:
        return False
    whole = only_consumer(back.outputs[0], "Reshape")
    if _perm(keys_transposed) != KEYS or whole is None:
        return False
    scale, queries = _scale(scores.inputs[0])
    rows = [_rows(queries), _rows(keys_transposed.inputs[0]), _rows(context.inputs[1])]
    if any(one is None for one in rows):
        return False
    q, k, v = (one for one in rows if one is not None)
    if not (q.heads == k.heads == v.heads and q.size == k.size and k.tokens == v.tokens):
        return False
    nodes: list[ir.Node] = []
    inputs = [_turned(model, one, nodes) for one in (q, k, v)]
    attention = ir.node(
        "MultiHeadAttention", inputs, {"num_heads": q.heads, "scale": scale}, domain=DOMAIN
    )
    attention.outputs[0].dtype = ir.DataType.FLOAT
    # The rows are in the order the last Reshape wants: only its shape of the tokens is applied.
    shaped = ir.node("Reshape", [attention.outputs[0], whole.inputs[1]], dict(whole.attributes))
    shaped.outputs[0].dtype = ir.DataType.FLOAT
    replace([context, back, whole], [*nodes, attention, shaped], shaped.outputs[0])
    return True


def _turned(model: ir.Model, rows: _Rows, nodes: list[ir.Node]) -> ir.Value:
    """Rows (B, S, heads * D), with their rotary encoding applied."""
    shape = constant(model, "rows", np.array([-1, rows.tokens, rows.heads * rows.size]))
    nodes.append(ir.node("Reshape", [rows.value, shape]))
    if rows.tables is not None:
        # One table row a token, starting at the first.
        start = constant(model, "first_position", np.zeros(1, np.int64))
        nodes.append(
            ir.node(
                "RotaryEmbedding",
                [nodes[-1].outputs[0], start, *(_stored(model, one) for one in rows.tables)],
                {"interleaved": 1, "num_heads": rows.heads},
                domain=DOMAIN,
            )
        )
    nodes[-1].outputs[0].dtype = ir.DataType.FLOAT
    return nodes[-1].outputs[0]


def _scale(value: ir.Value | None) -> tuple[float, ir.Value | None]:
    """Factor of the scores and the queries without it."""
    mul = producer(value, "Mul")
    if mul is not None:
        for factor, other in (mul.inputs, reversed(mul.inputs)):
            array = array_of(factor)
            if array is not None and array.size == 1:
                return float(array.reshape(-1)[0]), other
    return 1.0, value


def _rows(value: ir.Value | None) -> _Rows | None:
    """Undo the split into heads and the rotary encoding."""
    turned = producer(value, "Add")
    tables = None
    if turned is not None:
        found = rotary_from_add(turned)
        if found is None:
            return None
        value, tables = found.value, (found.cos, found.sin)
    split = producer(value, "Transpose")
    heads = producer(split.inputs[0], "Reshape") if split is not None else None
    if split is None or heads is None or _perm(split) != HEADS_FIRST:
        return None
    axes, given = list(heads.outputs[0].shape or ()), heads.inputs[0]
    fixed = [axis for axis in axes[1:] if isinstance(axis, int)]
    if given is None or len(axes) != 4 or len(fixed) != 3:
        return None
    tokens, count, size = fixed
    return _Rows(value=given, heads=count, tokens=tokens, size=size, tables=tables)


def _stored(model: ir.Model, table: Array) -> ir.Value:
    """A table, once for all layers that share it."""
    for known in model.graph.initializers.values():
        if (known.name or "").startswith("rotary_table"):
            content = array_of(known)
            if content is not None and np.array_equal(content, table):
                return known
    return constant(model, "rotary_table", table)


def _perm(node: ir.Node) -> list[int]:
    return [int(axis) for axis in node.attributes["perm"].as_ints()]
