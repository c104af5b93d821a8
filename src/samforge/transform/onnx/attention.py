"""Attention in explicit form: two matrix products around a softmax.

torch's own translation of ``scaled_dot_product_attention`` transposes the keys through a chain of
Shape, Slice and Concat and scales both sides by a square root. That loses every static shape behind
it, adds a dozen nodes a layer, and hides the pattern that runtimes fuse.
"""

from __future__ import annotations

from typing import Any

from onnxscript import opset20 as op

from samforge.core.errors import ExportError


def explicit_attention(  # noqa: PLR0913, PLR0917  # the signature of the aten operator
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Translate ``aten.scaled_dot_product_attention``.

    Args:
        query: (B, heads, Q, head size).
        key: (B, heads, K, head size).
        value: (B, heads, K, head size).
        attn_mask: Added to the scores, broadcast to (B, heads, Q, K).
        dropout_p: Must be 0: parts are exported in eval mode.
        is_causal: Must be False: parts bring their masks.
        scale: Factor of the scores; parts always give it.
        enable_gqa: Must be False.

    Raises:
        ExportError: An option is used that no part of ours needs.
    """
    if dropout_p or is_causal or enable_gqa or scale is None:
        raise ExportError(
            "attention with dropout, causal flag, grouped heads or without a scale has no explicit "
            f"form here (dropout {dropout_p}, causal {is_causal}, grouped {enable_gqa})."
        )
    if scale != 1:  # fused programs carry the scale in the weights
        factor: Any = op.Constant(value_float=scale)
        query = op.Mul(query, op.CastLike(factor, query))
    scores = op.MatMul(query, op.Transpose(key, perm=[0, 1, 3, 2]))
    if attn_mask is not None:
        scores = op.Add(scores, attn_mask)
    return op.MatMul(op.Softmax(scores, axis=-1), value)
