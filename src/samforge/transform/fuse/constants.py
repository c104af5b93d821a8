"""What depends on constants alone is computed once, here.

Matches: operators all of whose inputs are parameters, buffers, constants or numbers: tables built
with ``arange`` and ``meshgrid``, position embeddings tiled to the image, a weight that is reshaped
before each use.

Becomes: buffers with the results, in the type the graph computes them in.

Why: it is work that repeats with every call, and chains of small operators on shapes are what
runtimes translate worst.

Exact: the same operators run on the same numbers.

There are two fusions of it. ``constants`` stores what is small, or takes no more room than it
frees, for every target. ``large-constants`` stores what is larger and still a small share of the
weights, for the targets that gain from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from samforge.core.targets import TARGETS
from samforge.transform.fuse.editor import GraphEditor
from samforge.transform.fuse.match import is_pure, is_tensor, module_path, place, value_of
from samforge.transform.fuse.result import Fusion, FusionCount

SMALL_BYTES = 4 * 2**20
"""A result up to this size is stored whatever it was made of."""
SMALL_SHARE = 0.02
"""A larger one is stored up to this share of all weights, if the target wants it: position
embeddings tiled to 72 x 72 tokens of 1024 channels take 20 MiB, next to 1.7 GiB of weights."""


def fold_constants(editor: GraphEditor) -> FusionCount:
    """Store results at the edge between what is constant and what is not."""
    tally = FusionCount()
    constant = constant_nodes(editor)
    for node in _edge(constant):
        if reason := _obstacle(editor, node, constant):
            tally.left.append(f"{place(node)} ({node.name}): {reason}")
            continue
        fold(editor, node)
        tally.fired += 1
    editor.sweep()
    return tally


def fold_large_constants(editor: GraphEditor) -> FusionCount:
    """Store results that ``fold_constants`` would leave for their size; it tells what is left."""
    tally = FusionCount()
    constant = constant_nodes(editor)
    for node in _edge(constant):
        size, freed = value_of(node).nbytes, _freed(editor, node, constant)
        small = size <= max(SMALL_BYTES, freed)
        if editor.output in node.users or small or size > SMALL_SHARE * editor.nbytes:
            continue
        fold(editor, node)
        tally.fired += 1
    editor.sweep()
    return tally


def constant_nodes(editor: GraphEditor) -> dict[fx.Node, None]:
    """Calls whose result is the same in every run, in the graph's order."""
    found: dict[fx.Node, None] = {}
    for node in editor.graph.nodes:
        if node.op == "call_function" and is_pure(node.target):
            sources = node.all_input_nodes
            if all(source in found or editor.tensor(source) is not None for source in sources):
                found[node] = None
    return found


def fold(editor: GraphEditor, node: fx.Node, name: str = "folded") -> None:
    """Replace a constant node by a buffer with its value; equal values share one."""
    value = evaluate(editor, node).contiguous()
    buffer = editor.equal_constant(value)
    if buffer is None:
        buffer = editor.constant(f"{module_path(node)}.{name}_{node.name}".removeprefix("."), value)
    editor.replace(node, buffer)


def evaluate(editor: GraphEditor, node: fx.Node) -> Tensor:
    """Run a constant subgraph on its tensors."""
    known: dict[fx.Node, Any] = {}

    def value(source: fx.Node) -> Any:
        tensor = editor.tensor(source)
        return known[source] if tensor is None else tensor

    with torch.no_grad():
        for needed in _ancestors(editor, node):
            args, kwargs = fx.map_arg((needed.args, dict(needed.kwargs)), value)
            known[needed] = needed.target(*args, **kwargs)  # type: ignore[operator]
    result: Tensor = known[node]
    return result


def _ancestors(editor: GraphEditor, node: fx.Node) -> Iterator[fx.Node]:
    """A node and the calls it depends on, each behind its inputs."""
    needed, stack = {node}, [node]
    while stack:
        for source in stack.pop().all_input_nodes:
            if editor.tensor(source) is None and source not in needed:
                needed.add(source)
                stack.append(source)
    return (n for n in editor.graph.nodes if n in needed)


def _edge(constant: dict[fx.Node, None]) -> list[fx.Node]:
    """Constant tensors that something reads which is not constant."""
    return [
        node
        for node in constant
        if is_tensor(node) and not all(user in constant for user in node.users)
    ]


def _obstacle(editor: GraphEditor, node: fx.Node, constant: dict[fx.Node, None]) -> str | None:
    if editor.output in node.users:
        return "it is a result of the program"
    size, freed = value_of(node).nbytes, _freed(editor, node, constant)
    if size > max(SMALL_BYTES, freed):
        return f"its {size / 2**20:.1f} MiB would be stored in place of {freed / 2**20:.1f} MiB"
    return None


def _freed(editor: GraphEditor, node: fx.Node, constant: dict[fx.Node, None]) -> int:
    """Bytes of the tensors that nothing reads any more once a result is stored."""
    return sum(
        value_of(source).nbytes
        for needed in _ancestors(editor, node)
        for source in needed.all_input_nodes
        if editor.tensor(source) is not None and all(user in constant for user in source.users)
    )


LARGE_CONSTANTS = Fusion(
    name="large-constants",
    summary="operators on constants whose results take up to 2 % of the weights -> their results",
    exact=True,
    apply=fold_large_constants,
    # TensorRT stores a tiled position embedding as it is given: 21 MB more, 2.7 % of an fp16 engine
    # and 4.1 % of an int8 one, to save one copy of 21 MB an image (RTX 1.7).
    targets=tuple(name for name, target in TARGETS.items() if not target.engine),
)
CONSTANTS = Fusion(
    name="constants",
    summary="operators on constants -> their results",
    exact=True,
    apply=fold_constants,
)
