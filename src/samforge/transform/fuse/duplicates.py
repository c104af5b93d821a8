"""What is computed twice is computed once.

Matches: calls of one operator with the same arguments: DETR's decoder adds the position encoding to
the image's tokens again in each layer.

Becomes: the first of them.

Why: less to run; and linears of what was one tensor all along become visible as such.

Exact: the same operator on the same numbers.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from torch import fx

from samforge.transform.fuse.editor import GraphEditor
from samforge.transform.fuse.match import is_pure
from samforge.transform.fuse.result import Fusion, FusionCount


def merge_duplicates(editor: GraphEditor) -> FusionCount:
    """Replace later calls by the first; what reads them may then be equal too."""
    tally = FusionCount()
    first: dict[Hashable, fx.Node] = {}
    for node in list(editor.graph.nodes):
        if node.op != "call_function" or not is_pure(node.target) or editor.output in node.users:
            continue
        key = (node.target, _hashable(node.args), _hashable(node.kwargs))
        if key in first:
            editor.replace(node, first[key])
            tally.fired += 1
        else:
            first[key] = node
    editor.sweep()
    return tally


def _hashable(value: Any) -> Hashable:
    """Arguments, nested or not, as something to compare; 1, 1.0 and True are not the same."""
    if isinstance(value, tuple | list):
        return tuple(map(_hashable, value))
    if isinstance(value, dict):
        return tuple((key, _hashable(item)) for key, item in sorted(value.items()))
    return (type(value), value if isinstance(value, Hashable) else repr(value))


DUPLICATES = Fusion(
    name="duplicates",
    summary="equal calls -> one",
    exact=True,
    apply=merge_duplicates,
)
