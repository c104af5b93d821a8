"""A program that the ONNX exporter does not trace again where that would change nothing.

The exporter decomposes what it has no translation for, and for that runs the whole program once
more on fake tensors. With dynamic axes this is most of the time of a conversion (torch 2.13).
Hardly an operator of ours needs it: a few have translations (``translations.py``) or another form
here, and the program is given on as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import Graph, Node

aten = torch.ops.aten
_FORMED = (aten.flatten.using_ints, aten.unflatten.int)
"""What the exporter translates by computing shapes that are known."""
_PLAIN = frozenset({"_operator", "math", torch.__name__})
"""Modules of the functions that sizes are computed with."""


class _Untraced(ExportedProgram):
    """Decomposes itself where there is something to decompose."""

    def run_decompositions(
        self, decomp_table: Mapping[Any, Any] | None = None, **settings: Any
    ) -> ExportedProgram:
        """Decompose the operators of a table.

        Args:
            decomp_table: What to put in their place; None for torch's own.
            **settings: As torch takes them.

        Returns:
            This program, where it has none of them and changes none of its tensors in place.
        """
        if decomp_table is not None and not _needs(self.graph, decomp_table):
            return self
        traced: ExportedProgram = super().run_decompositions(decomp_table, **settings)
        return traced


def untraced(exported: ExportedProgram) -> ExportedProgram:
    """The same program for ``torch.onnx.export``, with its tensors and a graph of its own."""
    graph = copy.deepcopy(exported.graph)
    for node in list(graph.nodes):
        if isinstance(node.meta.get("val"), tuple):  # of a file; the exporter warns of each
            node.meta["val"] = list(node.meta["val"])
        if node.target in _FORMED and "val" in node.meta:
            _as_reshape(node)
    return _Untraced(
        exported.graph_module,
        graph,
        exported.graph_signature,
        exported.state_dict,
        exported.range_constraints,
        exported.module_call_graph,
        exported.example_inputs,
        exported.constants,
        verifiers=exported.verifiers,
    )


def _as_reshape(node: Node) -> None:
    """Say a new shape by its sizes, where all but one are known."""
    given: Any = node.args[0]
    shape: list[Any] = [size if isinstance(size, int) else -1 for size in node.meta["val"].shape]
    if node.target is aten.unflatten.int:
        axis: Any = node.args[1]
        sizes: Any = node.args[2]
        axis %= given.meta["val"].ndim
        shape[axis : axis + len(sizes)] = sizes
    if sum(size == -1 for size in shape) > 1:
        return
    # The node itself becomes it: an output of the program is known by its name.
    node.target, node.args, node.kwargs = aten.reshape.default, (given, shape), {}


def _needs(graph: Graph, table: Mapping[Any, Any]) -> bool:
    return any(_is_left(node, table) for node in graph.nodes if node.op == "call_function")


def _is_left(node: Node, table: Mapping[Any, Any]) -> bool:
    """Whether tracing would make something else of a node."""
    target = node.target
    if not isinstance(target, OpOverload):
        return getattr(target, "__module__", None) not in _PLAIN
    changes = target._schema.is_mutable  # noqa: SLF001  # torch gives no other way to ask
    unknown = target is aten.unflatten.int  # it has its other form where that is known
    return target in table or changes or unknown or "val" not in node.meta
