"""Sums of convolutions of different batches, for OpenVINO: the larger one comes first.

OpenVINO lets the convolution behind the first operand of a sum add the second to its own result, in
place. Where the first has a batch of one and the second many (the memory encoder adds the picture's
features, computed once, to those of each object's mask), an 8-bit graph then runs with one object
and fails with two: "Can not clone with new dims" (2026.4). Which of two is first changes no bit of
their sum.
"""

from __future__ import annotations

import onnx_ir as ir

from samforge.transform.onnx.graph import producer


def larger_first(model: ir.Model) -> list[str]:
    """Exchange the operands of such sums, in place.

    Args:
        model: Its values know their shapes.

    Returns:
        Names of the sums that were turned.
    """
    turned = []
    for node in model.graph:
        if node.op_type != "Add":
            continue
        first, second = node.inputs
        if not (producer(first, "Conv") and producer(second, "Conv")):
            continue
        if _batch(first) == 1 and _batch(second) != 1:
            node.replace_input_with(0, second)
            node.replace_input_with(1, first)
            turned.append(str(node.outputs[0].name))
    return turned


def _batch(value: ir.Value | None) -> int | ir.SymbolicDim | None:
    shape = value.shape if value is not None else None
    return shape[0] if shape else None
