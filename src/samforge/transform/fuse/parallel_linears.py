"""Linears that read the same input become one.

Matches: two or more ``linear`` calls on one tensor, in one module: q, k and v of self-attention; q
and k of DETR's, whose v reads the tokens without their position; k and v of cross-attention; gate
and up of a gated MLP. A missing bias (DINOv3's k has none) becomes zeros.

Becomes: one ``linear`` with the weights stacked, and a ``split_with_sizes`` whose pieces are views.

Why: one large matrix product fills a processor better than three small ones, and the input is read
and, in int8 and fp8, quantized once.

Reorders arithmetic: a library may block the larger product in another way.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import fx

from samforge.transform.fuse.draft import Draft
from samforge.transform.fuse.match import argument, aten, module_path, place
from samforge.transform.fuse.result import Fusion, Tally


def merge_parallel_linears(draft: Draft) -> Tally:
    """Merge them wherever weights are constants of their own."""
    tally = Tally()
    groups: dict[tuple[fx.Node, str], list[fx.Node]] = defaultdict(list)
    for node in draft.calls(aten.linear.default):
        groups[node.all_input_nodes[0], _parent(node)].append(node)
    for group in groups.values():
        if len(group) < 2:
            continue
        if reason := _obstacle(draft, group):
            tally.left.append(f"{_title(group)}: {reason}")
            continue
        _merge(draft, group)
        tally.fired += 1
        draft.sweep()
    return tally


def _parent(linear: fx.Node) -> str:
    return module_path(linear).rpartition(".")[0]


def _title(group: Sequence[fx.Node]) -> str:
    return f"{_parent(group[0])} ({', '.join(place(n).rpartition('.')[2] for n in group)})"


def _obstacle(draft: Draft, group: Sequence[fx.Node]) -> str | None:
    weights = [node.args[1] for node in group]
    biases = [bias for node in group if (bias := argument(node, 2, "bias")) is not None]
    if any(draft.tensor(constant) is None for constant in (*weights, *biases)):
        return "a weight is computed in the graph"
    if any(len(weight.users) > 1 for weight in weights if isinstance(weight, fx.Node)):
        return "a weight is used elsewhere too, and would be stored twice"
    if len({draft.tensor(weight).dtype for weight in weights}) > 1:  # type: ignore[union-attr]
        return "the weights differ in type"
    return None


def _merge(draft: Draft, group: Sequence[fx.Node]) -> None:
    """Put one linear where the first stands; the input is there, and so are all constants."""
    first = group[0]
    weight_nodes = [node.args[1] for node in group]
    weights = [draft.tensor(node) for node in weight_nodes]
    sizes = [len(weight) for weight in weights]  # type: ignore[arg-type]
    module = f"{_parent(first)}.{merged_name([module_path(n).rpartition('.')[2] for n in group])}"
    module = module.removeprefix(".")
    arguments = [
        first.args[0],
        draft.constant(f"{module}.weight", torch.cat(weights), like=weight_nodes[0]),  # type: ignore[arg-type]
    ]
    bias_nodes = [argument(node, 2, "bias") for node in group]
    given = [node for node in bias_nodes if node is not None]
    if given:
        biases = [
            weight.new_zeros(size) if node is None else draft.tensor(node)  # type: ignore[union-attr]
            for node, weight, size in zip(bias_nodes, weights, sizes, strict=True)
        ]
        arguments.append(draft.constant(f"{module}.bias", torch.cat(biases), like=given[0]))  # type: ignore[arg-type]
    merged = draft.call(aten.linear.default, *arguments, like=first)
    _name_layer(merged, module)
    pieces = draft.call(aten.split_with_sizes.default, merged, sizes, -1, like=merged, before=first)
    outputs = [
        draft.call(operator.getitem, pieces, index, like=merged, before=first)
        for index in range(len(group))
    ]
    for node, output in zip(group, outputs, strict=True):
        draft.replace(node, output)


def merged_name(names: Sequence[str]) -> str:
    """``q_proj``, ``k_proj``, ``v_proj`` -> ``qkv_proj``; ``gate_proj``, ``up_proj`` -> ``gate_up_proj``."""
    stems = [name.removesuffix("_proj") for name in names]
    joined = ("" if all(len(stem) == 1 for stem in stems) else "_").join(stems)
    return joined + ("_proj" if all(name.endswith("_proj") for name in names) else "")


def _name_layer(node: fx.Node, path: str) -> None:
    """Give the module stack's last entry the merged layer's path."""
    stack = dict(node.meta.get("nn_module_stack") or {})
    if not stack:
        return
    key, (_, kind) = stack.popitem()
    prefix, dot, _ = key.rpartition(".")
    stack[f"{prefix}{dot}{path.rpartition('.')[2]}"] = (path, kind)
    node.meta["nn_module_stack"] = stack


PARALLEL_LINEARS = Fusion(
    name="parallel-linears",
    summary="q, k, v (or gate, up) of one input -> one linear and a split",
    exact=False,
    apply=merge_parallel_linears,
)
