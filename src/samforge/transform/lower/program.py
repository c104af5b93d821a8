"""ExportedProgram -> ExportedProgram: number formats and kernels for one kind of processor.

Every operator that carries weights or has a choice of kernel becomes a small module of this
package, and the graph is traced again with the new types. What a kernel does alone is tested
alone, against float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule, Node

from samforge.core.axes import axes_of, sized
from samforge.core.errors import ExportError
from samforge.core.session import PartSpec, TensorSpec
from samforge.transform.lower.context import RuleContext, operator_name
from samforge.transform.lower.joined_linears import join_linears
from samforge.transform.lower.residual import join_sums
from samforge.transform.lower.rules import RULES, folded_convolutions
from samforge.transform.lower.settings import Lowering

ALWAYS_FLOAT32 = ("pred_logits", "pred_boxes", "presence_logit", "boxes_cxcywh", "images")
"""Never half, whatever passes between parts."""
NO_OPERATION = ("_assert_tensor_metadata", "dropout")


@dataclass(frozen=True, kw_only=True, slots=True)
class Lowered:
    """A lowered program and what became of its operators."""

    program: ExportedProgram
    """Traced for one device, with example inputs: ready to compile."""
    layers: tuple[tuple[str, str], ...]
    """Module path and number format of every linear and convolution, in order."""


def lower(
    program: ExportedProgram,
    spec: PartSpec,
    *,
    settings: Lowering,
    device: str = "cpu",
    sizes: Mapping[str, int] | None = None,
) -> Lowered:
    """Lower one part.

    Args:
        program: Exported, and fused where fusing pays.
        spec: Its interface: names and axes of inputs and outputs.
        settings: What may change.
        device: Where it will run: constants move there.
        sizes: Axes that become constants, by name; all others stay dynamic.

    Raises:
        ExportError: The changed graph cannot be traced.
        SettingError: The part has an axis that nobody knows.
    """
    fixed = dict(sizes or {})
    module = program.module()
    layers = _with_rules(module, settings, device)
    inputs, shapes = _example(spec, fixed, settings, device)
    wrapped = _Interface(module, spec, settings)
    try:
        with torch.no_grad():
            traced = torch.export.export(wrapped, inputs, dynamic_shapes=(shapes,), strict=False)
    except Exception as error:
        raise ExportError(f"{spec.name} cannot be lowered to {settings.precision}: {error}") from (
            error
        )
    return Lowered(program=traced, layers=layers)


class _Interface(nn.Module):
    """Gives results the types that the lowering promises."""

    def __init__(self, module: nn.Module, spec: PartSpec, settings: Lowering) -> None:
        super().__init__()
        self.module = module
        self.dtypes = tuple(interface_dtype(tensor, settings) for tensor in spec.outputs)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        results = self.module(*inputs)
        if isinstance(results, Tensor):
            results = (results,)
        return tuple(result.to(dtype) for result, dtype in zip(results, self.dtypes, strict=True))


def interface_dtype(tensor: TensorSpec, settings: Lowering) -> torch.dtype:
    """Type in which a lowered program takes or gives one tensor of its part's interface."""
    declared = cast(torch.dtype, getattr(torch, tensor.dtype))
    if not settings.half_features or declared != torch.float32 or tensor.name in ALWAYS_FLOAT32:
        return declared
    return settings.compute


def _example(
    spec: PartSpec, fixed: Mapping[str, int], settings: Lowering, device: str
) -> tuple[tuple[Tensor, ...], tuple[dict[int, Any], ...]]:
    """Example inputs and their dynamic axes."""
    axes = axes_of(spec)
    traced = {axis.name: axis.traced for axis in axes}
    # The program holds its own limits: a dimension that may pass them cannot be traced again.
    dims = {
        axis.name: Dim(axis.name, min=1, max=axis.most) for axis in axes if axis.name not in fixed
    }
    inputs, shapes = [], []
    for tensor in spec.inputs:
        shape = sized(tensor.shape, {**traced, **fixed}, f"{spec.name}'s {tensor.name}")
        example = torch.zeros(shape, dtype=interface_dtype(tensor, settings), device=device)
        if settings.half_features and tensor.name.startswith("fpn_"):
            example = example.contiguous(memory_format=torch.channels_last)
        inputs.append(example)
        shapes.append(
            {
                index: dims[axis]
                for index, axis in enumerate(tensor.shape)
                if isinstance(axis, str) and axis not in fixed
            }
        )
    return tuple(inputs), tuple(shapes)


def _with_rules(
    module: GraphModule, settings: Lowering, device: str
) -> tuple[tuple[str, str], ...]:
    """Put a module in the place of every operator that has a rule; constants move to a device."""
    graph = module.graph
    drop_checks(graph)
    _constants_to_buffers(module)
    context = RuleContext(module=module, settings=settings, device=device)
    for tail in folded_convolutions(context):
        graph.erase_node(tail)
    layers = []
    # GELUs last: a pair of fp8 linears takes the one between them with it.
    nodes = sorted(graph.nodes, key=lambda node: operator_name(node) == "gelu")
    for node in nodes:
        rule = RULES.get(operator_name(node))
        if rule is None or not (node.users or node.op == "output"):
            continue
        made = rule(node, context)
        if made is None:
            continue
        name = f"lowered_{node.name}"
        module.add_submodule(name, made.module)
        with graph.inserting_before(node):
            replacement = graph.call_module(name, made.arguments)
        replacement.meta = {**node.meta, "lowered": True}
        node.replace_all_uses_with(replacement)
        graph.erase_node(node)
        if made.format is not None:
            layers.append((context.path(node), made.format))
    if settings.sums == "joined":
        join_sums(module)
    join_linears(module)
    graph.eliminate_dead_code()
    _drop_unused_constants(module)
    graph.lint()
    module.recompile()
    module.to(device)
    return tuple(layers)


def drop_checks(graph: torch.fx.Graph) -> None:
    """Remove checks of the old types, guards of the old trace and dropout, which does nothing."""
    for node in list(graph.nodes):
        name = str(node.target).split(".")
        if node.op == "call_module" and node.target == "_guards_fn":
            graph.erase_node(node)
        elif node.op == "call_function" and len(name) > 1 and name[1] in NO_OPERATION:
            if node.args and node.users:
                node.replace_all_uses_with(cast(Node, node.args[0]))
            graph.erase_node(node)
        elif "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": None}


def _constants_to_buffers(module: GraphModule) -> None:
    """Register tensors that a model made while it was traced, so that they move with the rest."""
    kept = {name for name, _ in [*module.named_parameters(), *module.named_buffers()]}
    for name in {str(node.target) for node in module.graph.nodes if node.op == "get_attr"} - kept:
        path, _, leaf = name.rpartition(".")
        owner = module.get_submodule(path)
        value = getattr(owner, leaf)
        if isinstance(value, Tensor):
            delattr(owner, leaf)
            owner.register_buffer(leaf, value)


def _drop_unused_constants(module: GraphModule) -> None:
    for node in reversed(list(module.graph.nodes)):
        if node.op == "get_attr" and not node.users:
            module.graph.erase_node(node)
    module.delete_all_unused_submodules()
    kept = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name, _ in [*module.named_parameters(), *module.named_buffers()]:
        if name not in kept and not name.startswith("lowered_"):
            owner, _, leaf = name.rpartition(".")
            delattr(module.get_submodule(owner), leaf)
