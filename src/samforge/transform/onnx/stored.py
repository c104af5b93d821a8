"""What an ONNX graph holds: the constants that it reads, and what integers of a bias stand for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from samforge.core.session import Array
from samforge.transform.onnx.graph import array_of

BIAS_INPUT = 8
"""Of QLinearConv; its second input is the scale of activations, its fifth those of weights."""


def stored_in_onnx(model: ir.Model) -> dict[str, Array]:
    """Every constant that some operator reads, by its name."""
    values = [value for value in model.graph.initializers.values() if value.uses()]
    made = [node.outputs[0] for node in model.graph.all_nodes() if node.op_type == "Constant"]
    stored = {}
    for value in (*values, *made):
        array = array_of(value)
        if array is not None:
            stored[value.name or ""] = array
    return stored


def integer_biases(model: ir.Model) -> Iterator[tuple[str, Array, Array]]:
    """Name, integers and steps of each bias that a convolution adds in 32 bits, (channels,) both.

    A step is the scale of the activations times that of the channel's weights.
    """
    for node in model.graph:
        if node.op_type != "QLinearConv" or len(node.inputs) <= BIAS_INPUT:
            continue
        bias, scale, scales = (array_of(node.inputs[index]) for index in (BIAS_INPUT, 1, 4))
        if bias is not None and scale is not None and scales is not None:
            steps = np.broadcast_to(scale * scales, bias.shape)
            given = node.inputs[BIAS_INPUT]
            yield (given.name or "" if given is not None else ""), bias, steps
