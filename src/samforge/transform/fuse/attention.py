"""Attention written out becomes one operator again.

Matches: ``softmax(q @ k^T * scale + mask) @ v`` over (batch, heads, tokens, head size), as eager
attention of transformers traces, with or without scale and mask.

Becomes: ``scaled_dot_product_attention``. All later steps know attention by this node: the
quantizer leaves it alone, Inductor and PyTorch run their fused kernels for it, and the translation
to ONNX (:mod:`samforge.transform.onnx.attention`) writes it out in the one explicit form that
runtimes recognize. So fused or explicit is not decided here.

Why: one form in the graph, whatever the model's code looked like.

Reorders arithmetic: fused kernels add up in blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from samforge.transform.fuse.editor import GraphEditor
from samforge.transform.fuse.match import argument, aten, expressions, is_call, place, value_of
from samforge.transform.fuse.noops import PERMUTES, order_of
from samforge.transform.fuse.result import Fusion, FusionCount

PRODUCTS = (aten.matmul.default, aten.bmm.default)
SOFTMAX = (aten.softmax.int, aten._softmax.default)  # noqa: SLF001  # the operator's name
SCALE = (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """What goes into a softmax."""

    query: fx.Node
    """(B, heads, Q, head size)."""
    key: fx.Node
    """(B, heads, K, head size)."""
    scale: float
    """Factor of the products."""
    mask: fx.Node | None
    """Added to the products."""


def join_attention(editor: GraphEditor) -> FusionCount:
    """Replace every chain that is attention and nothing more."""
    tally = FusionCount()
    for result in editor.calls(*PRODUCTS):
        weights, value = result.args[:2]
        if not is_call(weights, *SOFTMAX) or not isinstance(value, fx.Node):
            continue
        scores = _scores(weights)
        if isinstance(scores, str):
            tally.left.append(f"{place(result)}: {scores}")
            continue
        mask = () if scores.mask is None else (scores.mask,)
        attention = editor.call(
            aten.scaled_dot_product_attention.default,
            scores.query,
            scores.key,
            value,
            *mask,
            scale=scores.scale,
            like=result,
        )
        editor.replace(result, attention)
        tally.fired += 1
    editor.sweep()
    return tally


def _scores(weights: fx.Node) -> Scores | str:
    """Read the chain in front of a softmax, or say why it is none."""
    if len(weights.users) > 1:
        return "its weights are read elsewhere too"
    if argument(weights, 1, "dim") not in (-1, value_of(weights).ndim - 1):
        return "its softmax does not run over the last axis"
    node, scale, mask = weights.all_input_nodes[0], 1.0, None
    if is_call(node, aten.add.Tensor) and len(node.all_input_nodes) == 2 and not node.kwargs:
        node, mask = _products_first(node)
    if is_call(node, *SCALE) and isinstance(node.args[1], int | float):
        factor = float(node.args[1])
        scale = factor if is_call(node, aten.mul.Tensor, aten.mul.Scalar) else 1 / factor
        node = node.all_input_nodes[0]
    if not is_call(node, *PRODUCTS):
        return f"its scores come from {getattr(node.target, '__name__', node.target)}"
    query, turned = node.args[:2]
    if (
        not isinstance(query, fx.Node)
        or not is_call(turned, *PERMUTES)
        or order_of(turned) != (0, 1, 3, 2)
    ):
        return "its keys are not transposed (batch, heads, tokens, head size)"
    if {value_of(weights).dtype, value_of(query).dtype} != {torch.float32}:
        return "it does not run in float32 throughout"
    return Scores(query=query, key=turned.all_input_nodes[0], scale=scale, mask=mask)


def _products_first(total: fx.Node) -> tuple[fx.Node, fx.Node]:
    """The two summands of the scores: the products, and the mask."""
    first, second = total.all_input_nodes
    shape = expressions(value_of(total).shape)
    if is_call(second, *PRODUCTS, *SCALE) and expressions(value_of(second).shape) == shape:
        return second, first
    return first, second


ATTENTION = Fusion(
    name="attention",
    summary="softmax(q @ k^T + mask) @ v -> scaled_dot_product_attention",
    exact=False,
    apply=join_attention,
)
