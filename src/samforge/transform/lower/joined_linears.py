"""Half linears of different layers that read one tensor become one.

Each of SAM 3's six decoder layers projects the same image tokens to keys and to values, and the
same text. Six products of 5,184 x 256 by 256 x 256 take 36 us on an H100, one by 1,536 x 256 takes
14. Within a layer the fusion ``parallel-linears`` has done so for every target; over layers it
pays only where launching costs more than the memory that all results take at once.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Sequence
from typing import cast

import torch
from torch.fx import GraphModule, Node

from samforge.transform.lower.linear import TypedLinear


def join_linears(module: GraphModule) -> None:
    """Put one linear and a split where several lowered ones read the same tensor."""
    groups: dict[tuple[Node, bool], list[Node]] = defaultdict(list)
    for node in module.graph.nodes:
        linear = _half_linear(module, node)
        if linear is not None:
            groups[node.args[0], linear.bias is None].append(node)
    for group in groups.values():
        if len(group) > 1:
            _join(module, group)


def _half_linear(module: GraphModule, node: Node) -> TypedLinear | None:
    if node.op != "call_module":
        return None
    made = module.get_submodule(str(node.target))
    # Exactly this class: others compute more than the product.
    if type(made) is not TypedLinear or made.dtype == torch.float32:
        return None
    return made


def _join(module: GraphModule, group: Sequence[Node]) -> None:
    linears = [cast(TypedLinear, module.get_submodule(str(node.target))) for node in group]
    weights = [linear.weight for linear in linears]
    biases = [linear.bias for linear in linears if linear.bias is not None]
    joined = TypedLinear(
        torch.cat(weights), torch.cat(biases) if biases else None, weights[0].dtype
    )
    first, graph = group[0], module.graph
    name = f"lowered_joined_{first.name}"
    module.add_submodule(name, joined)
    with graph.inserting_before(first):
        product = graph.call_module(name, (first.args[0],))
        sizes = [len(weight) for weight in weights]
        pieces = graph.call_function(torch.ops.aten.split_with_sizes.default, (product, sizes, -1))
        parts = [
            graph.call_function(operator.getitem, (pieces, index)) for index in range(len(group))
        ]
    for node, part in zip(group, parts, strict=True):
        part.meta = {key: value for key, value in node.meta.items() if key != "lowered"}
        node.replace_all_uses_with(part)
        graph.erase_node(node)
