"""Runs two programs of one part side by side and hands out what each layer gives in both.

Layers are the operators with a weight: linears and convolutions. Their names, the module paths of
their weights, survive fusion, quantization and SmoothQuant, and none of these changes what they
give but for rounding.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Interpreter, Node

from samforge.core.errors import SettingError
from samforge.transform.export import release

Pair: TypeAlias = tuple[str, npt.NDArray[Any], npt.NDArray[Any]]
"""Name of a layer, what the reference gives there, and what the other program gives."""

aten = torch.ops.aten
_WEIGHTED = {
    aten.linear.default,
    aten.addmm.default,
    aten.conv2d.default,
    aten.convolution.default,
    aten.conv_transpose2d.input,
}
_WEIGHT = re.compile(r"\.?weight(_int8)?$")
_CHAIN = 8
"""Most operators between a stored weight and the layer: dequantize, casts, a scale."""


def layer_names(program: ExportedProgram) -> tuple[str, ...]:
    """Name every layer of a program, in the order they run.

    A layer that runs several times has a number behind its name from the second time on.
    """
    return tuple(_named(program.module().graph.nodes).values())


def paired_layers(
    reference: ExportedProgram, other: ExportedProgram, inputs: Mapping[str, Tensor]
) -> Iterator[Pair]:
    """Run both programs in step, layer by layer.

    Besides what the programs themselves hold alive at a layer, no tensor is kept: memory does not
    grow with the number of layers, as long as both run them in one order.

    Args:
        reference: Float.
        other: The same part, fused or quantized.
        inputs: Input tensors by name, for both.

    Yields:
        Layers that both programs have, as float32 or whatever type they compute in.

    Raises:
        SettingError: They have no layer in common.
    """
    first, second = _Stepped(reference), _Stepped(other)
    shared = set(first.names.values()) & set(second.names.values())
    if not shared:
        raise SettingError(
            f"The two programs have no layer in common: one has {_some(first)}, the other "
            f"{_some(second)}. Compare programs of one part."
        )
    waiting: dict[str, Tensor] = {}
    others = second.run(inputs, shared)
    for name, wanted in first.run(inputs, shared):
        while name not in waiting:
            found, tensor = next(others)
            waiting[found] = tensor
        yield name, _array(wanted), _array(waiting.pop(name))


class _Stepped:
    """A program that stops behind layers."""

    def __init__(self, program: ExportedProgram) -> None:
        self._program = program
        self._module = program.module()
        self.names = _named(self._module.graph.nodes)

    def run(self, inputs: Mapping[str, Tensor], wanted: set[str]) -> Iterator[tuple[str, Tensor]]:
        """Run as far as the last wanted layer, and stop behind each."""
        order = [inputs[str(name)] for name in self._program.graph_signature.user_inputs]
        graph = self._module.graph
        interpreter = Interpreter(self._module)
        interpreter.args_iter = iter(graph.process_inputs(*order))
        left = sum(name in wanted for name in self.names.values())
        try:
            for node in graph.nodes:
                with torch.no_grad():
                    interpreter.env[node] = interpreter.run_node(node)
                if self.names.get(node) in wanted:
                    yield self.names[node], interpreter.env[node]
                    left -= 1
                if not left:
                    return
                for done in interpreter.user_to_last_uses.get(node, ()):
                    del interpreter.env[done]
        finally:
            self._release()

    def _release(self) -> None:
        # The module's tensors are objects of their own that a cache of torch keeps.
        kept = {
            id(tensor)
            for tensor in (*self._program.state_dict.values(), *self._program.constants.values())
        }
        own = [*self._module.parameters(), *self._module.buffers()]
        release(tensor for tensor in own if id(tensor) not in kept)


def _named(nodes: Any) -> dict[Node, str]:
    names: dict[Node, str] = {}
    times: dict[str, int] = {}
    for node in nodes:
        name = _layer(node)
        if name is None:
            continue
        times[name] = times.get(name, 0) + 1
        names[node] = name if times[name] == 1 else f"{name} ({times[name]})"
    return names


def _layer(node: Node) -> str | None:
    """Module path of an operator's stored weight; None where it has none."""
    if node.op != "call_function" or node.target not in _WEIGHTED:
        return None
    position = 2 if node.target is aten.addmm.default else 1
    source: Any = node.args[position]
    for _ in range(_CHAIN):
        if not isinstance(source, Node):
            return None
        if source.op == "get_attr":
            return _WEIGHT.sub("", str(source.target)) or str(source.target)
        source = source.args[0] if source.op == "call_function" and source.args else None
    return None


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    values = tensor.detach()
    array: npt.NDArray[Any] = np.asarray(
        (values.float() if values.dtype == torch.bfloat16 else values).cpu().numpy()
    )
    return array


def _some(program: _Stepped) -> str:
    names = list(program.names.values())
    return f"{', '.join(names[:3])} and {max(0, len(names) - 3)} more" if names else "none"
