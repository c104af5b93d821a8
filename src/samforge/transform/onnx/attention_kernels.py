"""Explicit attention -> ONNX Runtime's own attention and rotary operators.

Written out, attention over n tokens stores n x n scores: 1.6 GiB in each global layer at 1008
pixels, and more time goes into moving them than into products. MultiHeadAttention of the domain
``com.microsoft`` walks through them block by block inside of the processor's cache, on rows that
are not transposed; RotaryEmbedding turns those rows in one pass. The numbers are the same to 1e-6.
"""

from __future__ import annotations

from collections.abc import Sequence
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
class Rows:
    """Queries, keys or values as (B, S, heads * D) rows."""

    value: ir.Value
    """Before it was split into heads."""
    heads: int
    """Number of heads."""
    tokens: int
    """Number of rows: S."""
    size: int
    """Channels of a head: D."""
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
    if keys_transposed is None or back is None or perm_of(back) != HEADS_FIRST:
        return False
    whole = only_consumer(back.outputs[0], "Reshape")
    if perm_of(keys_transposed) != KEYS or whole is None:
        return False
    scale, queries = scale_of(scores.inputs[0])
    rows = [rows_of(queries), rows_of(keys_transposed.inputs[0]), rows_of(context.inputs[1])]
    if any(one is None for one in rows):
        return False
    q, k, v = (one for one in rows if one is not None)
    if not (q.heads == k.heads == v.heads and q.size == k.size and k.tokens == v.tokens):
        return False
    nodes: list[ir.Node] = []
    inputs = [turned_rows(model, one, nodes) for one in (q, k, v)]
    attention = ir.node(
        "MultiHeadAttention", inputs, {"num_heads": q.heads, "scale": scale}, domain=DOMAIN
    )
    attention.outputs[0].dtype = ir.DataType.FLOAT
    # The rows are in the order the last Reshape wants: only its shape of the tokens is applied.
    shaped = ir.node("Reshape", [attention.outputs[0], whole.inputs[1]], dict(whole.attributes))
    shaped.outputs[0].dtype = ir.DataType.FLOAT
    replace([context, back, whole], [*nodes, attention, shaped], shaped.outputs[0])
    return True


def turned_rows(model: ir.Model, rows: Rows, nodes: list[ir.Node]) -> ir.Value:
    """Rows (B, S, heads * D), with their rotary encoding applied.

    Args:
        model: Gets constants.
        rows: What to bring into this form.
        nodes: Gets the nodes that do it.
    """
    width, given = rows.heads * rows.size, rows.value
    if len(given.shape or ()) != 3 or list(given.shape or ())[1:] != [rows.tokens, width]:
        shape = constant(model, "rows", np.array([-1, rows.tokens, width]))
        nodes.append(ir.node("Reshape", [given, shape]))
        given = nodes[-1].outputs[0]
    if rows.tables is not None:
        # One table row a token, starting at the first.
        start = constant(model, "first_position", np.zeros(1, np.int64))
        nodes.append(
            ir.node(
                "RotaryEmbedding",
                [given, start, *(_stored(model, one) for one in rows.tables)],
                {"interleaved": 1, "num_heads": rows.heads},
                domain=DOMAIN,
            )
        )
        given = nodes[-1].outputs[0]
    given.dtype = ir.DataType.FLOAT
    return given


def scale_of(value: ir.Value | None) -> tuple[float, ir.Value | None]:
    """Factor of the scores and the queries without it."""
    mul = producer(value, "Mul")
    if mul is not None:
        for factor, other in (mul.inputs, reversed(mul.inputs)):
            array = array_of(factor)
            if array is not None and array.size == 1:
                return float(array.reshape(-1)[0]), other
    return 1.0, value


def rows_of(value: ir.Value | None, *, perm: Sequence[int] = HEADS_FIRST) -> Rows | None:
    """Undo the split into heads and the rotary encoding.

    Args:
        value: Queries, keys or values in heads, as they enter a product.
        perm: How heads were brought forward.

    Returns:
        None where it is no such value, or a size is not fixed.
    """
    turned = producer(value, "Add")
    tables = None
    if turned is not None:
        found = rotary_from_add(turned)
        if found is None:
            return None
        value, tables = found.value, (found.cos, found.sin)
    split = producer(value, "Transpose")
    heads = producer(split.inputs[0], "Reshape") if split is not None else None
    if split is None or heads is None or perm_of(split) != list(perm):
        return None
    axes, given = list(heads.outputs[0].shape or ()), heads.inputs[0]
    fixed = [axis for axis in axes[1:] if isinstance(axis, int)]
    if given is None or len(axes) != 4 or len(fixed) != 3:
        return None
    tokens, count, size = fixed
    return Rows(value=given, heads=count, tokens=tokens, size=size, tables=tables)


def _stored(model: ir.Model, table: Array) -> ir.Value:
    """A table, once for all layers that share it."""
    for known in model.graph.initializers.values():
        if (known.name or "").startswith("rotary_table"):
            content = array_of(known)
            if content is not None and np.array_equal(content, table):
                return known
    return constant(model, "rotary_table", table)


def perm_of(node: ir.Node) -> list[int]:
    """Order of the axes that a Transpose makes."""
    return [int(axis) for axis in node.attributes["perm"].as_ints()]
