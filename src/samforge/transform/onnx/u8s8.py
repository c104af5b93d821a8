"""Q/DQ -> the form whose integer kernels ONNX Runtime really has on a processor.

ONNX Runtime turns Q/DQ into integer kernels by patterns, and where a pattern fails it multiplies
in float without a word (1.31): an Add behind a product becomes a float Gemm, int8 activations run
at a fifteenth of the speed of uint8 ones, and a convolution needs a quantized output. So nothing
is left to patterns here: the integer operators are written into the graph. They are operators of
ONNX Runtime's own domain ``com.microsoft``; no other runtime reads the file.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from samforge.transform.onnx.convolution_products import (
    convolution_from_patches,
    convolution_to_kernel,
    transposed_from_product,
)
from samforge.transform.onnx.graph import constant, note, replace, tidy
from samforge.transform.onnx.qdq import (
    QuantizedLayer,
    activation_nodes,
    fold_weight_transposes,
    quantized_layers,
    restore,
    scale_and_zero,
)

DOMAIN = "com.microsoft"
INTEGER_NOTE = "samforge.integer"
"""Key in the file's notes: how many layers multiply integers."""
FLOAT_NOTE = "samforge.float"
"""Key in the file's notes: quantized layers that had to stay float, and why."""


def to_u8s8(model: ir.Model, *, output_scales: Mapping[str, float] | None = None) -> ir.Model:
    """Turn a symmetric int8 graph into ONNX Runtime's uint8 x int8 kernels, in place.

    The numbers stay what they were: an activation's zero point moves from 0 to 128 and its scale
    stays. Processors without VNNI instructions add pairs of products in 16 bits, where they may
    saturate; a session says so.

    Args:
        model: With Q/DQ, from :func:`samforge.transform.onnx.convert.onnx_from_exported`.
        output_scales: Range / 127 of convolutions' outputs by tensor name; such a convolution
            takes ONNX Runtime's own kernel with a quantized output.

    Returns:
        The same model. Its notes say how many layers multiply integers (``INTEGER_NOTE``) and
        which were left in float and why (``FLOAT_NOTE``).
    """
    fold_weight_transposes(model)
    unsigned_activations(model)
    done, left = 0, []
    for layer in quantized_layers(model):
        reason = _lower(model, layer, output_scales or {})
        done += reason is None
        if reason is not None:
            restore(model, layer)
            left.append(f"{layer.path}: {reason}")
    tidy(model)
    model.opset_imports[DOMAIN] = 1
    note(model, [(INTEGER_NOTE, str(done)), (FLOAT_NOTE, "; ".join(left))])
    return model


def unsigned_activations(model: ir.Model) -> ir.Model:
    """Shift int8 activations by 128 to uint8; every value stays the same."""
    zeros: dict[int, ir.Value] = {}
    for node in activation_nodes(model):
        _, zero = scale_and_zero(node)
        given = node.inputs[2] if len(node.inputs) > 2 else None
        if given is None or given.dtype != ir.DataType.INT8:
            continue
        if zero not in zeros:
            shifted = np.asarray(zero + 128, np.uint8)
            zeros[zero] = constant(model, f"zero_point_u8_{zero + 128}", shifted)
        node.replace_input_with(2, zeros[zero])
        if node.op_type == "QuantizeLinear":
            node.outputs[0].dtype = ir.DataType.UINT8
    return model


def _lower(
    model: ir.Model, layer: QuantizedLayer, output_scales: Mapping[str, float]
) -> str | None:
    """Write one layer's integer operators; returns why it cannot be done."""
    if layer.node.op_type in ("MatMul", "Gemm"):
        return _linear(model, layer)
    if layer.node.op_type == "ConvTranspose":
        return transposed_from_product(model, layer)
    return convolution_to_kernel(model, layer, output_scales) and convolution_from_patches(
        model, layer
    )


def _linear(model: ir.Model, layer: QuantizedLayer) -> str | None:
    """MatMul or Gemm -> MatMulIntegerToFloat, which scales and adds the bias on its way out."""
    weight, attributes = layer.read_weight(), layer.node.attributes
    integers, axis = weight.integers, weight.axis
    if integers.ndim != 2:
        return f"its weight has {integers.ndim} axes"
    if layer.node.op_type == "Gemm":
        if attributes.get_int("transA", 0) or attributes.get_float("alpha", 1.0) != 1.0:
            return "it scales or transposes its input"
        if attributes.get_int("transB", 0):
            integers, axis = integers.T, 1 - axis
    if weight.scales.size > 1 and axis != 1:
        return "its weight's scales are not those of output channels"
    stored = weight.node.inputs[0]
    if integers is not weight.integers or stored is None:
        stored = constant(model, f"{layer.path}.weight_t", integers)
    bias = layer.bias
    product = ir.node(
        "MatMulIntegerToFloat",
        [
            layer.activation.inputs[0],
            stored,
            layer.activation.inputs[1],
            weight.node.inputs[1],
            layer.activation.inputs[2],
            None,
            None if bias is None else constant(model, f"{layer.path}.bias", bias),
        ],
        domain=DOMAIN,
    )
    product.outputs[0].dtype = ir.DataType.FLOAT
    nodes = [layer.node] if layer.bias_add is None else [layer.node, layer.bias_add]
    replace(nodes, [product], product.outputs[0])
    return None
