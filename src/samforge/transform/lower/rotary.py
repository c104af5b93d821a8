"""Finds the rotary encoding of queries and keys in a graph, for kernels that apply it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import Node

if TYPE_CHECKING:
    from samforge.transform.lower.context import RuleContext

_MULTIPLY, _ADD = torch.ops.aten.mul.Tensor, torch.ops.aten.add.Tensor
_TURN = (  # from the turned halves of each pair back to what they were taken from
    torch.ops.aten.flatten.using_ints,
    torch.ops.aten.stack.default,
)


def rotation_from_node(node: Node, context: RuleContext) -> tuple[Node, Tensor, Tensor] | None:
    """Read ``x * cos + pairs(x) * sin`` off a graph, ``pairs`` giving (-b, a) for (a, b).

    Args:
        node: What attention reads, (B, H, T, D).
        context: Owner of the tables.

    Returns:
        What was encoded, and cosine and sine (T, D / 2) of each pair's angle; None where the node
        is anything else.
    """
    if node.target != _ADD or len(node.users) != 1:
        return None
    operands: Any = node.args
    straight, crossed = operands
    if not (_calls(straight, _MULTIPLY) and _calls(crossed, _MULTIPLY)):
        return None
    source: Node = straight.args[0]
    cos = context.constant(straight.args[1])
    sin = context.constant(crossed.args[1])
    if cos is None or sin is None or _turned_pairs(crossed.args[0]) is not source:
        return None
    tables = [table.float().reshape(table.shape[-2:]) for table in (cos, sin)]
    if any(not torch.equal(table[:, ::2], table[:, 1::2]) for table in tables):
        return None
    cos, sin = (table[:, ::2].contiguous() for table in tables)
    return source, cos, sin


def _turned_pairs(node: Any) -> Node | None:
    """The node x of ``flatten(stack([-b, a]))`` with a, b the neighbours in the last axis of x."""
    for target in _TURN:
        if not _calls(node, target):
            return None
        node = node.args[0] if target is _TURN[0] else node
    halves = node.args[0]
    if len(halves) != 2 or not _calls(halves[0], torch.ops.aten.neg.default):
        return None
    places = [halves[1], halves[0].args[0]]
    if any(getattr(one.target, "__name__", "") != "getitem" for one in places):
        return None
    unbind = places[0].args[0]
    if [one.args for one in places] != [(unbind, 0), (unbind, 1)]:
        return None
    if not _calls(unbind, torch.ops.aten.unbind.int) or unbind.args[1] != -1:
        return None
    paired: Any = unbind.args[0]
    if not _calls(paired, torch.ops.aten.reshape.default, torch.ops.aten.view.default):
        return None
    source = paired.args[0]
    grouped = paired.meta["val"].shape
    if grouped[-1] != 2 or grouped[-2] * 2 != source.meta["val"].shape[-1]:
        return None
    return source if isinstance(source, Node) else None


def _calls(node: Any, *targets: Any) -> bool:
    return isinstance(node, Node) and node.target in targets
