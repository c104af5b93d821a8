"""Reshapes ask for numbers, and infer what depends on the batch.

Matches: ``view``, ``reshape`` and ``unflatten`` whose sizes are computed in the graph from the
sizes of inputs.

Becomes: the same with the sizes that are known as numbers, and -1 for one that is not. Where two
are dynamic, the other stays computed.

Why: a runtime that reads constant shapes can plan memory and see patterns; computed ones reach it
as chains of Shape, Gather and Concat. A vision part loses its last operator on sizes.

Exact: data stays where it is.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from samforge.transform.fuse.editor import GraphEditor
from samforge.transform.fuse.match import argument, aten, expressions, is_call, value_of
from samforge.transform.fuse.result import Fusion, FusionCount

PLACE = {aten.view.default: 1, aten.reshape.default: 1, aten.unflatten.int: 2}
"""Which argument holds the sizes."""


def ask_for_numbers(editor: GraphEditor) -> FusionCount:
    """Rewrite the sizes of every reshape that computes them."""
    tally = FusionCount()
    for node in editor.calls(*PLACE):
        index = PLACE[node.target]  # type: ignore[index]
        asked = list(node.args[index])  # type: ignore[arg-type]
        wanted = _sizes(node, asked)
        if wanted != asked:
            node.update_arg(index, wanted)
            tally.fired += 1
    editor.sweep()
    return tally


def _sizes(node: fx.Node, asked: list[Any]) -> list[Any]:
    """What to ask for, as far as possible without the sizes of other tensors."""
    if not any(isinstance(size, fx.Node) for size in asked):
        return asked
    gets = expressions(value_of(node).shape)
    if is_call(node, aten.unflatten.int):
        axis, rank = argument(node, 1, "dim"), value_of(node.all_input_nodes[0]).ndim
        first = axis % rank
        gets = gets[first : first + len(asked)]
    dynamic = [i for i, size in enumerate(gets) if not isinstance(size, int)]
    computed = [i for i in dynamic if asked[i] != -1]
    sizes = [size if isinstance(size, int) else asked[i] for i, size in enumerate(gets)]
    if computed == dynamic:  # the last one is inferred, as none is yet
        sizes[dynamic[-1]] = -1
    return sizes


STATIC_RESHAPES = Fusion(
    name="static-reshapes",
    summary="sizes of reshapes computed in the graph -> numbers and one -1",
    exact=True,
    apply=ask_for_numbers,
)
