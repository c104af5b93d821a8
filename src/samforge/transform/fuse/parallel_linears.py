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

from samforge.core.targets import TARGETS
from samforge.transform.fuse.editor import GraphEditor
from samforge.transform.fuse.match import argument, aten, module_path, value_of
from samforge.transform.fuse.result import Fusion, FusionCount


def merge_parallel_linears(editor: GraphEditor) -> FusionCount:
    """Merge them wherever weights are constants of their own."""
    tally = FusionCount()
    groups: dict[tuple[fx.Node, str], list[fx.Node]] = defaultdict(list)
    for node in editor.calls(aten.linear.default):
        groups[node.all_input_nodes[0], _parent(node)].append(node)
    for group in groups.values():
        if len(group) < 2:
            continue
        if reason := _obstacle(editor, group):
            tally.left.append(f"{_title(group)}: {reason}")
            continue
        _merge(editor, group)
        tally.fired += 1
        editor.sweep()
    return tally


def _parent(linear: fx.Node) -> str:
    return module_path(linear).rpartition(".")[0]


def _leaf(linear: fx.Node) -> str:
    return module_path(linear).rpartition(".")[2]


def _title(group: Sequence[fx.Node]) -> str:
    names = ", ".join(_leaf(node) or node.name for node in group)
    return f"{_parent(group[0]) or 'the part itself'} ({names})"


def _obstacle(editor: GraphEditor, group: Sequence[fx.Node]) -> str | None:
    constants = [node for linear in group for node in linear.all_input_nodes[1:]]
    if any(editor.tensor(node) is None for node in constants):
        return "a weight is computed in the graph"
    if any(len(node.users) > 1 for node in constants):
        return "a weight is used elsewhere too, and would be stored twice"
    if len({value_of(linear).dtype for linear in group}) > 1:
        return "the results differ in type"
    return None


def _merge(editor: GraphEditor, group: Sequence[fx.Node]) -> None:
    """Put one linear where the first stands: its input is there, and all constants are."""
    first = group[0]
    path = f"{_parent(first)}.{merged_name([_leaf(node) for node in group])}".removeprefix(".")
    weights = [node.all_input_nodes[1] for node in group]
    arguments = [first.all_input_nodes[0], _stack(editor, f"{path}.weight", weights, weights)]
    biases = [argument(node, 2, "bias") for node in group]
    if any(biases):
        arguments.append(_stack(editor, f"{path}.bias", biases, weights))
    merged = editor.call(aten.linear.default, *arguments, like=first)
    _name_layer(merged, path)
    sizes = [value_of(weight).shape[0] for weight in weights]
    pieces = editor.call(
        aten.split_with_sizes.default, merged, sizes, -1, like=merged, before=first
    )
    outputs = [
        editor.call(operator.getitem, pieces, index, like=merged, before=first)
        for index in range(len(group))
    ]
    for node, output in zip(group, outputs, strict=True):
        editor.replace(node, output)


def _stack(
    editor: GraphEditor, name: str, constants: Sequence[fx.Node | None], weights: Sequence[fx.Node]
) -> fx.Node:
    """One constant of several; zeros stand for a bias that is missing."""
    tensors = []
    for constant, weight in zip(constants, weights, strict=True):
        tensor = editor.tensor(constant)
        if tensor is None:
            rows = editor.tensor(weight)
            assert rows is not None  # noqa: S101  # a group without it is left alone
            tensor = rows.new_zeros(len(rows))
        tensors.append(tensor)
    like = next(constant for constant in constants if constant is not None)
    return editor.constant(name, torch.cat(tensors), like=like)


def merged_name(names: Sequence[str]) -> str:
    """Name the merged layer: ``qkv_proj`` for q_proj, k_proj and v_proj; else ``gate_up_proj``."""
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
    # TensorRT merges them itself, and runs a merged one in half where Q/DQ surround it (RTX 1.7).
    targets=tuple(name for name, target in TARGETS.items() if not target.engine),
)
