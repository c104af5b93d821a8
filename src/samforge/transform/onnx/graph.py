"""Small operations on onnx_ir graphs that the flavour passes share."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from samforge.core.session import Array

SCOPES_KEY = "pkg.torch.onnx.name_scopes"
"""Where the exporter notes the modules that a node comes from, outermost first."""


def layer_path(node: ir.Node) -> str:
    """Module path that a node comes from, as reports name layers: ``layers.3.mlp.fc1``."""
    scopes = node.metadata_props.get(SCOPES_KEY)
    if scopes:
        names = [str(name) for name in ast.literal_eval(scopes)]
        # The last entry is the aten node itself.
        modules = [name for name in names[:-1] if name]
        if modules:
            return modules[-1]
    return node.name or node.outputs[0].name or node.op_type


def constant(
    model: ir.Model, name: str, array: Array, dtype: ir.DataType | None = None
) -> ir.Value:
    """Add an initializer; a name that is taken gets a number.

    Args:
        model: Gets the initializer.
        name: Wanted name.
        array: Content.
        dtype: ONNX type for those that numpy lacks (float8); None takes the array's.
    """
    taken = model.graph.initializers
    unique = name
    for number in range(1, len(taken) + 2):
        if unique not in taken:
            break
        unique = f"{name}_{number}"
    tensor = ir.Tensor(np.asarray(array, order="C"), dtype=dtype, name=unique)
    value = ir.val(unique, const_value=tensor)
    model.graph.register_initializer(value)
    return value


def array_of(value: ir.Value | None) -> Array | None:
    """Content of a constant, or None for what is computed."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return None if tensor is None else tensor.numpy()


def producer(value: ir.Value | None, *operators: str) -> ir.Node | None:
    """The node that makes a value, if it is one of these operators."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type in operators else None


def consumers(value: ir.Value) -> list[ir.Node]:
    """Nodes that read a value, each once, in the order of their use."""
    return list(dict.fromkeys(node for node, _ in value.uses()))


def only_consumer(value: ir.Value, *operators: str) -> ir.Node | None:
    """The single node that reads a value, if there is just one and it is of these operators."""
    readers = consumers(value)
    if len(readers) != 1 or value.is_graph_output() or readers[0].op_type not in operators:
        return None
    return readers[0]


def set_type(value: ir.Value, dtype: ir.DataType | None) -> None:
    """Set an element type if it is known."""
    if dtype is not None:
        value.dtype = dtype


def replace(old: Sequence[ir.Node], new: Sequence[ir.Node], output: ir.Value) -> None:
    """Put new nodes where the last of the old ones stands; ``output`` takes its result's name.

    The old nodes must not be read by others; what only they read is left to :func:`tidy`.
    """
    last = old[-1]
    result = last.outputs[0]
    graph = last.graph
    assert graph is not None  # noqa: S101  # nodes of a model belong to its graph
    graph.insert_before(last, new)
    output.name, result.name = result.name, None
    output.shape = result.shape
    set_type(output, output.dtype or result.dtype)
    result.replace_all_uses_with(output, replace_graph_outputs=True)
    for node in new:
        # The first of the old ones is the layer itself, and its module names it in reports.
        for key, value in old[0].metadata_props.items():
            node.metadata_props.setdefault(key, value)
    graph.remove(list(reversed(old)), safe=True)


def tidy(model: ir.Model) -> None:
    """Drop nodes and initializers that nobody reads."""
    common.RemoveUnusedNodesPass()(model)


def note(model: ir.Model, notes: Iterable[tuple[str, str]]) -> None:
    """Write notes that travel in the file; see ``samforge.backends._onnx_file``."""
    model.metadata_props.update(notes)
