"""Q/DQ program in int8 -> the same in FP8 (E4M3), for fidelity in torch.

The range of every scale stays, the steps change; weights are rounded again from int8, as the ONNX
flavour does it.
"""

from __future__ import annotations

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from samforge.transform.quantize.emit import drop_unused
from samforge.transform.quantize.quantizer import along
from samforge.transform.quantize.reexport import exported_again
from samforge.transform.quantize.simulate import (
    ACTIVATION_TO_E4M3,
    E4M3_MAX,
    WEIGHT_TO_E4M3,
)
from samforge.transform.quantize.sites import arguments, aten, constant

ops = torch.ops.quantized_decomposed


def e4m3_program(program: ExportedProgram, part: str) -> ExportedProgram:
    """Change number formats between Q and DQ.

    Args:
        program: From :func:`samforge.transform.quantize.program_from_calibrated`.
        part: Name of the part, for messages.

    Returns:
        A program that stores weights as float8_e4m3fn and rounds activations to it, and computes in
        float32 as Q/DQ graphs do.

    Raises:
        ExportError: The changed graph cannot be exported again.
    """
    graph = program.module()
    for node in list(graph.graph.nodes):
        if node.target is ops.dequantize_per_channel.default:
            _weight(graph, node)
        elif node.target is ops.dequantize_per_tensor.default:
            _activation(graph, node)
    graph.graph.eliminate_dead_code()
    drop_unused(graph)
    return exported_again(graph, program, part)


def _activation(graph: GraphModule, dequantize: Node) -> None:
    quantize = arguments(dequantize)[0]
    values, int8_scale, *_ = arguments(quantize)
    scale = int8_scale * ACTIVATION_TO_E4M3
    with graph.graph.inserting_before(dequantize):
        steps = graph.graph.call_function(aten.div.Tensor, (values, scale))
        inside = graph.graph.call_function(aten.clamp.default, (steps, -E4M3_MAX, E4M3_MAX))
    _back_to_float(graph, dequantize, inside, scale)


def _weight(graph: GraphModule, dequantize: Node) -> None:
    source, scales, _, axis, *_ = arguments(dequantize)
    int8 = constant(graph, str(source.target))
    scale = along(constant(graph, str(scales.target)), axis, int8.ndim)
    wanted = scale * WEIGHT_TO_E4M3
    small = (int8 * scale / wanted).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    owner, _, leaf = str(source.target).rpartition(".")
    stem = leaf.removesuffix("_int8")
    nodes = []
    for suffix, tensor in (("e4m3", small), ("e4m3_scale", wanted)):
        graph.get_submodule(owner).register_buffer(f"{stem}_{suffix}", tensor)
        with graph.graph.inserting_before(dequantize):
            nodes.append(graph.graph.get_attr(f"{owner}.{stem}_{suffix}".removeprefix(".")))
    _back_to_float(graph, dequantize, nodes[0], nodes[1])


def _back_to_float(graph: GraphModule, old: Node, values: Node, scale: Node | float) -> None:
    with graph.graph.inserting_before(old):
        small = graph.graph.call_function(aten.to.dtype, (values, torch.float8_e4m3fn))
        wide = graph.graph.call_function(aten.to.dtype, (small, torch.float32))
        scaled = graph.graph.call_function(aten.mul.Tensor, (wide, scale))
    for node in (small, wide, scaled):
        node.meta = {k: v for k, v in old.meta.items() if k == "nn_module_stack"}
    old.replace_all_uses_with(scaled)
    graph.graph.erase_node(old)
