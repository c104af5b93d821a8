"""Calls that change nothing go.

Matches, where shape, type and device stay as they are: dropout outside training, casts, expands,
slices, permutes, reshapes, pads by nothing, additions of 0, multiplications by 1, clones, detached
and lifted copies, ``contiguous`` of what is contiguous or is reshaped next, and assertions about
types that are known. Also two reshapes or two permutes in a row.

Becomes: their input; of two in a row, one.

Why: fewer nodes to read, to translate and to match: half of an exported graph is such traces of the
Python code.

Exact: data stays where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from samforge.transform.fuse.editor import GraphEditor
from samforge.transform.fuse.match import (
    argument,
    aten,
    is_call,
    is_tensor,
    same_sizes,
    value_of,
)
from samforge.transform.fuse.result import Fusion, FusionCount

RESHAPES = (aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int)
"""Same elements in the same order; the others of the kind are not worth a rule here."""
PERMUTES = (aten.permute.default, aten.transpose.int, aten.mT.default)
COPIES = (
    aten.alias.default,
    aten.detach.default,
    aten.detach_.default,
    aten.lift_fresh.default,
    aten.lift_fresh_copy.default,
)
CASTS = (
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.to.device,
    aten.to.other,
    aten._to_copy.default,  # noqa: SLF001  # the operator's name
    aten.type_as.default,
)
SAME_SHAPE = (
    *RESHAPES,
    aten.expand.default,
    aten.expand_as.default,
    aten.slice.Tensor,
)
"""These do nothing if they give the shape they got."""
PADS = (aten.pad.default, aten.constant_pad_nd.default)
LAYOUTS = (aten.contiguous.default, aten.clone.default)
ASSERTIONS = (aten._assert_tensor_metadata.default,)  # noqa: SLF001  # the operator's name


def remove_noops(editor: GraphEditor) -> FusionCount:
    """Remove them until none is left."""
    tally = FusionCount()
    before = -1
    for node in editor.calls(*ASSERTIONS):
        editor.graph.erase_node(node)
        tally.fired += 1
    while before != tally.fired:
        before = tally.fired
        for node in list(editor.graph.nodes):
            if not is_tensor(node) or node.op != "call_function" or not node.users:
                continue
            tally.fired += _bypass(editor, node) or _join(editor, node)
        editor.sweep()
    return tally


def _bypass(editor: GraphEditor, node: fx.Node) -> bool:
    """Let the readers of a node that does nothing read its input."""
    source = node.all_input_nodes[0] if node.all_input_nodes else None
    if source is None or not is_tensor(source) or not _does_nothing(node, source):
        return False
    if editor.output in node.users and source.op == "placeholder":
        return False  # a program may not return its input itself
    editor.replace(node, source)
    return True


def _does_nothing(node: fx.Node, source: fx.Node) -> bool:
    given, taken = value_of(node), value_of(source)
    alike = (given.dtype, given.device) == (taken.dtype, taken.device)
    if not alike or not same_sizes(given.shape, taken.shape):
        return False
    if is_call(node, *COPIES, *SAME_SHAPE):
        return True
    if is_call(node, *CASTS, *LAYOUTS):
        read_as_list = all(is_call(user, *RESHAPES) for user in node.users)
        return read_as_list or same_sizes(given.stride(), taken.stride())
    if is_call(node, aten.dropout.default):
        return not node.args[1] or node.args[2] is False
    if is_call(node, *PADS):
        return not any(argument(node, 1, "pad"))
    if is_call(node, *PERMUTES):
        return order_of(node) == tuple(range(taken.ndim))
    neutral = NEUTRAL.get(node.target)  # type: ignore[arg-type]
    plain = len(node.args) == 2 and not node.kwargs and node.args[0] is source
    return plain and neutral is not None and bool(node.args[1] == neutral)


NEUTRAL: dict[Callable[..., Any], int] = {
    aten.add.Tensor: 0,
    aten.add.Scalar: 0,
    aten.sub.Tensor: 0,
    aten.sub.Scalar: 0,
    aten.mul.Tensor: 1,
    aten.mul.Scalar: 1,
    aten.div.Tensor: 1,
    aten.div.Scalar: 1,
}
"""Right operand with which arithmetic does nothing."""


def _join(editor: GraphEditor, node: fx.Node) -> bool:
    """Make one of two reshapes, or of two permutes."""
    source = node.args[0]
    if not isinstance(source, fx.Node):
        return False
    if is_call(node, *RESHAPES) and is_call(source, *RESHAPES):
        shape = _target_shape(node)
        if shape is None:
            return False
        joined = editor.call(aten.reshape.default, source.args[0], shape, like=node)
    elif is_call(node, *PERMUTES) and is_call(source, *PERMUTES):
        first = order_of(source)
        order = [first[axis] for axis in order_of(node)]
        joined = editor.call(aten.permute.default, source.args[0], order, like=node)
    else:
        return False
    editor.replace(node, joined)
    return True


def _target_shape(node: fx.Node) -> Sequence[Any] | None:
    """The shape that a reshape asks for, if it does not depend on the shape it gets."""
    if is_call(node, aten.view.default, aten.reshape.default):
        return node.args[1]  # type: ignore[return-value]
    shape = value_of(node).shape
    dynamic = [size for size in shape if isinstance(size, torch.SymInt)]
    if len(dynamic) > 1:
        return None
    return [-1 if isinstance(size, torch.SymInt) else size for size in shape]


def order_of(node: fx.Node) -> tuple[int, ...]:
    """A permute or transpose as the order of the axes."""
    rank = value_of(node).ndim
    if is_call(node, aten.permute.default):
        return tuple(axis % rank for axis in argument(node, 1, "dims"))
    order = list(range(rank))
    first, second = rank - 2, rank - 1
    if is_call(node, aten.transpose.int):
        first, second = argument(node, 1, "dim0") % rank, argument(node, 2, "dim1") % rank
    order[first], order[second] = order[second], order[first]
    return tuple(order)


NOOPS = Fusion(
    name="no-ops",
    summary="dropout, casts, copies, reshapes and the like that change nothing -> nothing",
    exact=True,
    apply=remove_noops,
)
