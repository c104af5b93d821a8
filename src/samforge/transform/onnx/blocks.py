"""Attention over many tokens in blocks of queries: the same numbers, a fraction of the memory.

Explicit attention of one global layer at 1008 pixels writes 5184 x 5184 scores for each of 16
heads: 1.6 GiB, and as much again for their softmax. A query's row does not depend on other
queries, so blocks of them follow each other instead. TensorRT wants the plain form: its fusion
looks for exactly one pair of products.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from samforge.transform.onnx.graph import constant, only_consumer, producer, replace, set_type, tidy

QUERIES = 1296
"""Queries in a block, and the number from which attention is divided: a quarter of 5184."""


def block_attention(model: ir.Model, *, queries: int = QUERIES) -> ir.Model:
    """Divide every unmasked attention of more queries than ``queries``, in place.

    Args:
        model: With explicit attention.
        queries: Largest number of queries in one block.

    Returns:
        The same model.
    """
    for softmax in [node for node in model.graph if node.op_type == "Softmax"]:
        scores = producer(softmax.inputs[0], "MatMul")
        context = only_consumer(softmax.outputs[0], "MatMul")
        if scores is None or context is None or context.inputs[0] is not softmax.outputs[0]:
            continue
        shape = list(scores.outputs[0].shape or ())
        if len(shape) != 4 or not isinstance(shape[2], int) or shape[2] <= queries:
            continue
        _divide(model, (scores, softmax, context), shape[2], queries)
    tidy(model)
    return model


def _divide(
    model: ir.Model, nodes: tuple[ir.Node, ir.Node, ir.Node], total: int, queries: int
) -> None:
    scores, softmax, context = nodes
    axis = constant(model, "queries_axis", np.array([2]))
    made: list[ir.Node] = []
    parts: list[ir.Value] = []
    for start in range(0, total, queries):
        end = min(start + queries, total)
        bounds = [
            constant(model, name, np.array([edge]))
            for name, edge in (("block_start", start), ("block_end", end))
        ]
        block = ir.node("Slice", [scores.inputs[0], *bounds, axis])
        product = ir.node("MatMul", [block.outputs[0], scores.inputs[1]])
        weights = ir.node("Softmax", [product.outputs[0]], dict(softmax.attributes))
        part = ir.node("MatMul", [weights.outputs[0], context.inputs[1]])
        originals = (scores.inputs[0], *(node.outputs[0] for node in nodes))
        for new, original in zip((block, product, weights, part), originals, strict=True):
            _describe(new.outputs[0], original, end - start)
        made += [block, product, weights, part]
        parts.append(part.outputs[0])
    made.append(ir.node("Concat", parts, {"axis": 2}))
    set_type(made[-1].outputs[0], context.outputs[0].dtype)
    replace(nodes, made, made[-1].outputs[0])


def _describe(value: ir.Value, original: ir.Value | None, queries: int) -> None:
    """Give a block's value the type and shape of what it is a part of."""
    if original is None:
        return
    set_type(value, original.dtype)
    if original.shape is not None:
        axes = list(original.shape)
        axes[2] = queries
        value.shape = ir.Shape(axes)
