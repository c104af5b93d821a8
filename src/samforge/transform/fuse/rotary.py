"""Rotary position encoding reads tables of cosines and sines instead of computing them.

Matches: ``x * cos + rotated(x) * sin``, pairwise (SAM 3) or by halves (DINOv3), whose cosine and
sine are computed in the graph from constants and static sizes. transformers' DINOv3 does so in
every forward.

Becomes: the same arithmetic with two buffers, in the type the graph computes them in: float32.

Why: angles rounded to half precision cost up to 0.04 in the cosine; a stored table stays as it is
when everything around it is cast. SAM 3's parts come with such tables: nothing is left to do.

Exact: the same operators run on the same numbers.
"""

from __future__ import annotations

import operator

from torch import fx

from samforge.transform.fuse.constants import constant_nodes, fold
from samforge.transform.fuse.editor import GraphEditor
from samforge.transform.fuse.match import aten, is_call, place
from samforge.transform.fuse.noops import RESHAPES
from samforge.transform.fuse.result import Fusion, FusionCount

PARTS = (
    aten.slice.Tensor,
    aten.unbind.int,
    aten.chunk.default,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    operator.getitem,
)
"""How a half is taken from the whole."""


def store_rotary_tables(editor: GraphEditor) -> FusionCount:
    """Store the tables wherever their size is known."""
    tally = FusionCount()
    constant = constant_nodes(editor)
    for table in _tables(editor):
        if table in constant:
            fold(editor, table, "rotary")
            tally.fired += 1
        else:
            tally.left.append(f"{place(table)} ({table.name}): it depends on the program's inputs")
    editor.sweep()
    return tally


def _tables(editor: GraphEditor) -> dict[fx.Node, None]:
    """Cosines and sines that are computed in the graph, each once."""
    found: dict[fx.Node, None] = {}
    for total in editor.calls(aten.add.Tensor):
        products = total.all_input_nodes
        if len(products) != 2 or not all(is_call(node, aten.mul.Tensor) for node in products):
            continue
        for straight, turned in (products, reversed(products)):
            for rotated in turned.all_input_nodes:
                origins = _origins(rotated)
                if origins:
                    sine = [node for node in turned.all_input_nodes if node is not rotated]
                    cosine = [node for node in straight.all_input_nodes if node not in origins]
                    found |= {n: None for n in (*cosine, *sine) if editor.tensor(n) is None}
    return found


def _origins(node: fx.Node) -> set[fx.Node]:
    """What a rotated tensor may be the rotation of; nothing if it is no rotation.

    A rotation joins one half, negated, and the other.
    """
    while is_call(node, *RESHAPES):
        node = node.all_input_nodes[0]
    if not is_call(node, aten.stack.default, aten.cat.default):
        return set()
    halves = node.all_input_nodes
    if len(halves) != 2 or not is_call(halves[0], aten.neg.default):
        return set()
    source, found = halves[1], {halves[1]}
    while is_call(source, *PARTS, *RESHAPES):
        source = source.all_input_nodes[0]
        found.add(source)
    return found


ROTARY = Fusion(
    name="rotary-tables",
    summary="cosines and sines computed from static sizes -> buffers",
    exact=True,
    apply=store_rotary_tables,
)
