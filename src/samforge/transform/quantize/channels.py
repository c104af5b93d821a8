"""Where the output channels of a weight go: which element of a later tensor comes from which.

A positive factor on one output channel is a factor on every element that comes from it, through
whatever moves elements or treats each alike: views, ReLU, a product with something else, the sum
over tokens that attention weighs. Labels say it: of every element the number of its channel. They
are a strided view over ``arange(channels)`` with stride 0 along every other axis, so torch's own
rules for views carry them in no memory, and refuse what would mix channels with anything.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from samforge.transform.quantize.sites import arguments, aten

Labels: TypeAlias = Tensor
"""Channel of every element, int64."""
Moved: TypeAlias = Labels | tuple[Labels, ...] | None
"""Labels behind an operator, a tuple of them behind a split; None where a factor does not pass."""

ALIKE = {
    aten.contiguous.default,
    aten.clone.default,
    aten.alias.default,
    aten.dropout.default,
    aten.to.dtype,
    aten.relu.default,
    aten.leaky_relu.default,
    aten.abs.default,
    aten.neg.default,
}
"""``f(s * x)`` is ``s * f(x)`` of every element, for positive s."""
RESHAPED = {
    aten.view.default,
    aten.reshape.default,
    aten.unflatten.int,
    aten.flatten.using_ints,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.squeeze.default,
}
"""Keep the order of elements."""
TURNED = {aten.permute.default, aten.transpose.int, aten.unbind.int, aten.select.int}
"""Views that torch gives of labels as it does of values."""
CUT = {aten.slice.Tensor, aten.split_with_sizes.default, aten.split.Tensor, aten.chunk.default}
"""The same along one axis, with lengths that may be computed where no channel is counted."""
FACTORS = {aten.mul.Tensor, aten.mul.Scalar}
"""Products with something else, whichever comes first."""
SPREAD = {aten.div.Tensor, aten.div.Scalar, aten.expand.default}
"""Keep every channel in its place, along more elements."""
POOLED = {
    aten.max_pool2d.default,
    aten.avg_pool2d.default,
    aten.upsample_nearest2d.vec,
    aten.upsample_bilinear2d.vec,
}
"""Treat every channel alike and alone, over the last two axes."""
PADDED = {aten.pad.default, aten.constant_pad_nd.default}
ATTENTION = aten.scaled_dot_product_attention.default
PRODUCTS = {aten.matmul.default, aten.bmm.default}
SHAPES = {aten.sym_size.int, aten._assert_tensor_metadata.default}  # noqa: SLF001  its name
"""Read no values."""


def shape_of(node: Node) -> tuple[int, ...]:
    """Shape with every dynamic axis of length 2, so that none is taken for a broadcast one."""
    return tuple(_length(axis) for axis in node.meta["val"].shape)


def _length(axis: int | torch.SymInt) -> int:
    if isinstance(axis, int):
        return axis
    expression = axis.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, 2)))


def labels_of(node: Node, axis: int) -> Labels:
    """Labels of a tensor that counts its channels along one axis."""
    shape = shape_of(node)
    own = [1] * len(shape)
    own[axis] = shape[axis]
    return torch.arange(shape[axis]).view(own).expand(shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class End:
    """Where labels stop."""

    node: Node
    """The operator that a factor does not pass."""
    sources: tuple[Node, ...]
    """What it reads of the labelled tensors."""


def follow(writer: Node, labels: Labels) -> tuple[dict[Node, Any], tuple[End, ...]]:
    """Go through everything that reads an operator's result.

    Args:
        writer: The operator.
        labels: Of its result.

    Returns:
        The labels of every tensor that a factor reaches, and the operators it does not pass, in
        the order of the graph.
    """
    order = {node: index for index, node in enumerate(writer.graph.nodes)}
    known: dict[Node, Any] = {writer: labels}
    ends: list[End] = []
    waiting = [(order[user], user) for user in writer.users]
    seen = set(writer.users)
    heapify(waiting)
    while waiting:
        # In the order of the graph: whatever else a node reads has its labels by then.
        _, node = heappop(waiting)
        if node.target in SHAPES:
            continue
        sources = tuple(one for one in node.all_input_nodes if one in known)
        found = moved(node, known)
        if found is None or node.target is ATTENTION:
            # Attention lets values pass, not what their weights come from.
            passed = arguments(node)[2:3] if found is not None else ()
            stopped = tuple(one for one in sources if one not in passed or _twice(node, one))
            ends += [End(node=node, sources=stopped)] if stopped else []
        if found is None:
            continue
        known[node] = found
        for user in node.users.keys() - seen:
            seen.add(user)
            heappush(waiting, (order[user], user))
    return known, tuple(ends)


def moved(node: Node, known: Mapping[Node, Any]) -> Moved:
    """Labels behind one operator, from those of what it reads.

    Args:
        node: Reads at least one labelled tensor.
        known: Labels so far.

    Returns:
        None where a factor on a channel does not come out as the same factor.
    """
    if node.op != "call_function":
        return None
    if node.target is operator.getitem:
        source, index = arguments(node)
        found: Labels = known[source][index]
        return found
    value = node.meta.get("val")
    if isinstance(value, Tensor) and not value.is_floating_point():
        return None
    labelled = [one for one in node.all_input_nodes if one in known]
    source = arguments(node)[2] if node.target is ATTENTION else labelled[0]
    if source not in known:
        return None
    # x * x has another factor than x.
    if node.target is not ATTENTION and (len(labelled) != 1 or _twice(node, source)):
        return None
    # torch says so where a view would mix channels with another axis.
    try:
        return _moved(node, source, known[source])
    except RuntimeError:
        return None


def _twice(node: Node, source: Node) -> bool:
    """Whether an operator reads a tensor in several places."""
    return [*tree_leaves((node.args, node.kwargs))].count(source) > 1


def _moved(node: Node, source: Node, labels: Labels) -> Moved:
    if node.target is ATTENTION:
        return _attended(node, labels)
    if node.target in PRODUCTS:
        return _weighed(node, source, labels)
    if node.target in FACTORS:
        return labels.expand(shape_of(node))
    rule = RULES.get(node.target)
    # Of all others what is read first; 1 / x has the inverse factor.
    return rule(node, labels) if rule is not None and arguments(node)[0] is source else None


def _same(_node: Node, labels: Labels) -> Moved:
    return labels


def _viewed(node: Node, labels: Labels) -> Moved:
    return labels.view(shape_of(node))


def _spread(node: Node, labels: Labels) -> Moved:
    return labels.expand(shape_of(node))


def _turned(node: Node, labels: Labels) -> Moved:
    call: Any = node.target
    result = call(labels, *arguments(node)[1:], **node.kwargs)
    return tuple(result) if isinstance(result, (list, tuple)) else result


def _pooled(node: Node, labels: Labels) -> Moved:
    return _resized(node, labels, {labels.ndim - 2, labels.ndim - 1})


def _cut(node: Node, labels: Labels) -> Moved:
    """A part of an axis; lengths that the graph computes only along one without channels."""
    given = arguments(node)[1:]
    if not any(isinstance(one, Node) for one in (*given, *node.kwargs.values())):
        return _turned(node, labels)
    if node.target is not aten.slice.Tensor or not isinstance(given[0], int):
        return None
    return _resized(node, labels, {given[0] % labels.ndim})


def _padded(node: Node, labels: Labels) -> Moved:
    """Padding is 0, and so it stays under any factor."""
    _, widths, *rest = arguments(node)
    if [one for one in rest if one not in ("constant", None, 0)] or node.kwargs:
        return None
    padded = {
        labels.ndim - 1 - index // 2
        for index, width in enumerate(widths)
        if isinstance(width, Node) or width
    }
    return _resized(node, labels, padded)


def _attended(node: Node, labels: Labels) -> Moved:
    """Attention weighs the tokens of the value and leaves its channels apart."""
    rest = arguments(node)[3:]
    options = {**dict(zip(("attn_mask", "dropout_p"), rest, strict=False)), **node.kwargs}
    if options.get("dropout_p") or options.get("enable_gqa"):
        return None
    return _resized(node, labels, {labels.ndim - 2})


def _weighed(node: Node, source: Node, labels: Labels) -> Moved:
    """A product that sums over tokens: attention written out."""
    first, second = arguments(node)[:2]
    summed = labels.ndim - 2 if second is source else labels.ndim - 1
    ranks = {len(first.meta["val"].shape), len(second.meta["val"].shape)}
    if ranks != {labels.ndim} or labels.ndim < 3 or labels.stride(summed):
        return None
    kept = labels.ndim - 1 if second is source else labels.ndim - 2
    strides = [0] * labels.ndim
    strides[kept] = labels.stride(kept)
    for axis in range(labels.ndim - 2):
        strides[axis] = labels.stride(axis)
        if strides[axis] and labels.shape[axis] != shape_of(node)[axis]:
            return None
    return _strided(labels, shape_of(node), strides)


def _resized(node: Node, labels: Labels, axes: set[int]) -> Moved:
    """The same labels, where axes without channels got another length."""
    shape, strides = shape_of(node), list(labels.stride())
    changed = {axis for axis in range(labels.ndim) if labels.shape[axis] != shape[axis]}
    if any(labels.shape[axis] > 1 and strides[axis] for axis in axes | changed):
        return None
    for axis in axes | changed:
        strides[axis] = 0
    return _strided(labels, shape, strides)


def _strided(labels: Labels, shape: Sequence[int], strides: Sequence[int]) -> Labels:
    return labels.as_strided(shape, strides, labels.storage_offset())


def along_axis(labels: Labels, axis: int) -> Tensor | None:
    """Channel of every place along one axis, (places,); None where another axis counts channels."""
    others = [i for i in range(labels.ndim) if i != axis % labels.ndim]
    if any(labels.stride(i) and labels.shape[i] > 1 for i in others):
        return None
    for i in reversed(others):
        labels = labels.select(i, 0)
    return labels.clone()


def channels_in(labels: Labels) -> Tensor:
    """The channels that occur, each once."""
    for axis in reversed(range(labels.ndim)):
        if not labels.stride(axis):
            labels = labels.select(axis, 0)
    return torch.unique(labels)  # type: ignore[no-any-return]


RULES: Mapping[Any, Callable[[Node, Labels], Moved]] = {
    **dict.fromkeys(ALIKE, _same),
    **dict.fromkeys(RESHAPED, _viewed),
    **dict.fromkeys(SPREAD, _spread),
    **dict.fromkeys(TURNED, _turned),
    **dict.fromkeys(CUT, _cut),
    **dict.fromkeys(PADDED, _padded),
    **dict.fromkeys(POOLED, _pooled),
}
"""What operators do to the labels of what they read first."""
