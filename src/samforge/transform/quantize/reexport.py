"""Changed graph -> ExportedProgram with the inputs and dynamic axes of the one it came from."""

from __future__ import annotations

import torch
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from samforge.core.errors import ExportError


def exported_again(graph: GraphModule, program: ExportedProgram, part: str) -> ExportedProgram:
    """Export a graph that was made from a program.

    Args:
        graph: From ``program.module()``, changed since.
        program: Names the inputs and limits their axes.
        part: Name of the part, for the message.

    Raises:
        ExportError: torch.export gave up, or an axis became a constant.
    """
    arguments, shapes = _example(program)
    try:
        with torch.no_grad():
            exported = torch.export.export(graph, arguments, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        raise ExportError(f"{part} cannot be exported with Q/DQ: {error}") from error
    # Neither example tensors nor paths of this machine.
    exported.example_inputs = None
    for node in exported.graph.nodes:
        node.meta.pop("stack_trace", None)
    return exported


def _example(
    program: ExportedProgram,
) -> tuple[tuple[torch.Tensor, ...], tuple[dict[int, Dim], ...]]:
    """Zeros for every input and the axes that are dynamic."""
    values = {node.name: node.meta["val"] for node in program.graph.find_nodes(op="placeholder")}
    axes: dict[str, Dim] = {}
    lengths: dict[str, int] = {}
    arguments, shapes = [], []
    for name in program.graph_signature.user_inputs:
        value = values[str(name)]
        dynamic = {i: axis for i, axis in enumerate(value.shape) if not isinstance(axis, int)}
        for axis in dynamic.values():
            axes.setdefault(str(axis), _axis(program, axis))
            # All different and above 1, so that none is taken for a constant or for another.
            lengths.setdefault(str(axis), 2 + len(lengths))
        shape = [lengths[str(axis)] if i in dynamic else axis for i, axis in enumerate(value.shape)]
        arguments.append(torch.zeros(shape, dtype=value.dtype))
        shapes.append({i: axes[str(axis)] for i, axis in dynamic.items()})
    return tuple(arguments), tuple(shapes)


def _axis(program: ExportedProgram, axis: torch.SymInt) -> Dim:
    limits = program.range_constraints[axis.node.expr]
    low = int(limits.lower)
    if not limits.upper.is_Integer:  # no upper limit
        return Dim(str(axis), min=low)
    return Dim(str(axis), min=low, max=int(limits.upper))
