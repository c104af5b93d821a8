"""Which kernel takes the place of which attention."""

from __future__ import annotations

from typing import Any, cast

from torch.fx import Node

from samforge.transform.lower.attention import Attention
from samforge.transform.lower.biased_attention import BiasedAttention
from samforge.transform.lower.context import Replacement, RuleContext, argument, operator_name
from samforge.transform.lower.few_keys import FEW_KEYS, FewKeysAttention, biases_few_keys
from samforge.transform.lower.grid_bias import embedding_before, grid_bias_from_mask
from samforge.transform.lower.rotary import rotation_from_node
from samforge.transform.lower.streamed_attention import StreamedAttention, suits_streaming

_VIEWS = ("transpose", "permute", "reshape", "view", "flatten", "contiguous", "clone")


def attention(node: Node, context: RuleContext) -> Replacement:
    """Choose what attends: by the mask, the shape and the settings."""
    settings = context.settings
    query, key, value = _operands(node)
    mask = argument(node, 3, "attn_mask")
    kernel = settings.attention
    keys = key.meta["val"].shape[-2]
    causal = bool(argument(node, 5, "is_causal", False))
    separable = settings.position_bias == "separable" and settings.precision != "fp32"
    grid_bias = grid_bias_from_mask(mask) if separable and not causal else None
    if grid_bias is not None:
        return _biased_attention(node, context, *grid_bias)
    few = settings.attention in ("fastest", "triton") and settings.precision != "fp32"
    if few and not causal and biases_few_keys(mask, key):
        made = FewKeysAttention(settings.compute, argument(node, 6, "scale"))
        return Replacement(module=made, arguments=(query, key, value, cast(Node, mask)))
    if causal:
        kernel = "auto"  # the streaming kernel and explicit products know no order
    elif _is_bias(mask) and settings.position_bias == "sdpa":
        kernel = "auto"
    elif mask is not None or (isinstance(keys, int) and keys <= FEW_KEYS):
        kernel = "explicit"
    elif settings.precision == "fp32":
        kernel = "auto"
    elif kernel == "triton" or (
        kernel == "fastest" and suits_streaming(query.meta["val"], key.meta["val"])
    ):
        return _streamed_attention(node, context)
    elif kernel == "fastest":
        kernel = "cudnn"
    module = Attention(
        settings.compute,
        kernel,
        argument(node, 6, "scale"),
        causal,
    )
    given = (query, key, value) if mask is None else (query, key, value, cast(Node, mask))
    return Replacement(module=module, arguments=given)


def _biased_attention(
    node: Node, context: RuleContext, down: Node, across: Node, plain: int
) -> Replacement:
    embeddings = None
    found = [embedding_before(part, context.module) for part in (down, across)]
    if found[0] is not None and found[1] is not None:
        (first, down), (second, across) = found[0], found[1]
        embeddings = (first, second)
    module = BiasedAttention(
        context.settings.compute, argument(node, 6, "scale"), plain, embeddings
    )
    return Replacement(module=module, arguments=(*_operands(node), down, across))


def _streamed_attention(node: Node, context: RuleContext) -> Replacement:
    """Attention that takes over the rotary encoding of its query and of its key."""
    query, key, value = _operands(node)
    found = [rotation_from_node(one, context) for one in (query, key)]
    sources = [
        one if turn is None else turn[0] for one, turn in zip((query, key), found, strict=True)
    ]
    module = StreamedAttention(
        context.settings.compute,
        argument(node, 6, "scale"),
        *(None if turn is None else turn[1:] for turn in found),
    )
    return Replacement(module=module, arguments=(*sources, value))


def _operands(node: Node) -> tuple[Node, Node, Node]:
    """Query, key and value."""
    query, key, value = (cast(Node, node.args[index]) for index in range(3))
    return query, key, value


def _is_bias(mask: Any) -> bool:
    """Whether a mask differs from query to query and has many keys."""
    if not isinstance(mask, Node):
        return False
    queries, keys = mask.meta["val"].shape[-2:]
    return queries != 1 and not (isinstance(keys, int) and keys <= FEW_KEYS)


def streamed_attention_before(node: Node, context: RuleContext) -> StreamedAttention | None:
    """The lowered attention whose result a node alone reads, as it is or in another shape."""
    front = node.args[0]
    while isinstance(front, Node) and len(front.users) == 1:
        found = context.lowered(front)
        if found is not None:
            return found if isinstance(found, StreamedAttention) else None
        if operator_name(front) not in _VIEWS:
            return None
        front = front.args[0]
    return None
