"""Quantized convolutions as ONNX Runtime multiplies them in integers.

Its one integer convolution with a fast kernel, QLinearConv, quantizes what it gives. Where the
output must stay float a convolution becomes a matrix product: that of its patches, or for a
transposed convolution whose kernel equals its stride, that of its pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from samforge.core.session import Array
from samforge.transform.onnx.graph import constant, only_consumer, replace, set_type
from samforge.transform.onnx.qdq import QuantizedLayer, scale_and_zero

INT32_MAX = 2**31 - 1


def convolution_to_kernel(
    model: ir.Model, layer: QuantizedLayer, output_scales: Mapping[str, float]
) -> str | None:
    """Conv -> QLinearConv, if what follows quantizes its output or its range is known.

    Returns:
        Why it cannot be done, or None.
    """
    node = layer.node
    quantize = only_consumer(node.outputs[0], "QuantizeLinear")
    known = output_scales.get(node.outputs[0].name or "")
    if quantize is None and known is None:
        return "its output stays float"
    weight = layer.read_weight()
    if weight.axis != 0 and weight.scales.size > 1:
        return "its weight's scales are not those of output channels"
    channels = weight.integers.shape[0]
    name, zero = layer.path, layer.activation.inputs[2]
    if quantize is not None:
        scale, out_zero = quantize.inputs[1:3]
    else:
        scale, out_zero = constant(model, f"{name}.output_scale", np.array(known, np.float32)), zero
    inputs = [
        *layer.activation.inputs[:3],
        weight.node.inputs[0],
        weight.node.inputs[1],
        constant(model, f"{name}.weight_zero", np.zeros(weight.scales.shape, np.int8)),
        scale,
        out_zero,
    ]
    if (bias := layer.bias) is not None:
        steps = scale_and_zero(layer.activation)[0] * np.broadcast_to(weight.scales, (channels,))
        integers = np.rint(bias.astype(np.float64) / steps)
        if np.abs(integers).max(initial=0) > INT32_MAX:
            return "its bias does not fit 32 bits"
        inputs.append(constant(model, f"{name}.bias_int32", integers.astype(np.int32)))
    kernel = ir.node("QLinearConv", inputs, dict(node.attributes))
    set_type(kernel.outputs[0], zero.dtype if zero is not None else None)
    if quantize is not None:
        replace([node, quantize], [kernel], kernel.outputs[0])
        return None
    kernel.outputs[0].shape = node.outputs[0].shape
    back = ir.node("DequantizeLinear", [kernel.outputs[0], scale, out_zero])
    back.outputs[0].dtype = ir.DataType.FLOAT
    replace([node], [kernel, back], back.outputs[0])
    return None


def convolution_from_patches(model: ir.Model, layer: QuantizedLayer) -> str | None:
    """Conv -> one product of all patches: shifted slices of the padded integer image.

    Returns:
        Why it cannot be done, or None.
    """
    node, weight = layer.node, layer.read_weight()
    size_hw = _image_size(node.inputs[0])
    attributes = node.attributes
    if size_hw is None:
        return "its image has no fixed size"
    plain = (
        attributes.get_int("group", 1) == 1
        and attributes.get_string("auto_pad", "NOTSET") == "NOTSET"
        and set(attributes.get_ints("dilations", [1, 1])) == {1}
        and set(attributes.get_ints("strides", [1, 1])) == {1}
    )
    if not plain:
        return "only convolutions of stride 1 without groups or dilation become products"
    pads = list(attributes.get_ints("pads", [0, 0, 0, 0]))  # top, left, bottom, right
    kernel_hw = weight.integers.shape[2:]
    out_hw = [
        size + pads[i] + pads[i + 2] - kernel + 1
        for i, (size, kernel) in enumerate(zip(size_hw, kernel_hw, strict=True))
    ]
    quantized, _, zero = layer.activation.inputs[:3]
    steps = [ir.node("Transpose", [quantized], {"perm": [0, 2, 3, 1]})]  # [B, H, W, C]
    if any(pads):
        edges = constant(model, f"{layer.path}.pads", np.array([0, *pads[:2], 0, 0, *pads[2:], 0]))
        steps.append(ir.node("Pad", [steps[-1].outputs[0], edges, zero]))
    image, axes = steps[-1].outputs[0], constant(model, "axes_hw", np.array([1, 2]))
    shifted = []
    for top in range(kernel_hw[0]):
        for left in range(kernel_hw[1]):
            start = constant(model, "patch_start", np.array([top, left]))
            end = constant(model, "patch_end", np.array([top + out_hw[0], left + out_hw[1]]))
            shifted.append(ir.node("Slice", [image, start, end, axes]))
    if len(shifted) > 1:
        patches = ir.node("Concat", [one.outputs[0] for one in shifted], {"axis": 3})
        steps += [*shifted, patches]
    # [O, C, KH, KW] -> [KH * KW * C, O], in the order of the slices.
    matrix = weight.integers.transpose(2, 3, 1, 0).reshape(-1, weight.integers.shape[0])
    scales = np.broadcast_to(weight.scales, (weight.integers.shape[0],))
    steps.append(_product(model, layer, steps[-1].outputs[0], matrix, (scales, layer.bias)))
    steps.append(ir.node("Transpose", [steps[-1].outputs[0]], {"perm": [0, 3, 1, 2]}))
    steps[-1].outputs[0].dtype = ir.DataType.FLOAT
    replace([node], steps, steps[-1].outputs[0])
    return None


def transposed_from_product(model: ir.Model, layer: QuantizedLayer) -> str | None:
    """ConvTranspose whose kernel equals its stride -> every pixel times the kernel, then a move.

    Returns:
        Why it cannot be done, or None.
    """
    node, weight = layer.node, layer.read_weight()
    inputs, outputs, *kernel_hw = weight.integers.shape
    size_hw, attributes = _image_size(node.inputs[0]), node.attributes
    if size_hw is None:
        return "its image has no fixed size"
    plain = (
        attributes.get_int("group", 1) == 1
        and list(attributes.get_ints("strides", [1, 1])) == kernel_hw
        and not any(attributes.get_ints("pads", [0]))
        and not any(attributes.get_ints("output_padding", [0]))
        and set(attributes.get_ints("dilations", [1, 1])) == {1}
    )
    if not plain:
        return "only transposed convolutions whose kernel equals their stride become products"
    if weight.scales.size > 1 and weight.axis != 1:
        return "its weight's scales are not those of output channels"
    area = int(np.prod(kernel_hw))
    scales = np.repeat(np.broadcast_to(weight.scales, (outputs,)), area)
    bias = None if layer.bias is None else np.repeat(layer.bias, area)
    pixels = ir.node("Transpose", [layer.activation.inputs[0]], {"perm": [0, 2, 3, 1]})
    matrix = weight.integers.reshape(inputs, outputs * area)
    product = _product(model, layer, pixels.outputs[0], matrix, (scales, bias))
    tiles = _reshape(model, product.outputs[0], [0, *size_hw, outputs, *kernel_hw])
    placed = ir.node("Transpose", [tiles.outputs[0]], {"perm": [0, 3, 1, 4, 2, 5]})
    grown = [size * kernel for size, kernel in zip(size_hw, kernel_hw, strict=True)]
    image = _reshape(model, placed.outputs[0], [0, outputs, *grown])
    image.outputs[0].dtype = ir.DataType.FLOAT
    replace([node], [pixels, product, tiles, placed, image], image.outputs[0])
    return None


def _product(
    model: ir.Model,
    layer: QuantizedLayer,
    rows: ir.Value,
    matrix: Array,
    scales_and_bias: tuple[Array, Array | None],
) -> ir.Node:
    scales, bias = scales_and_bias
    return ir.node(
        "MatMulIntegerToFloat",
        [
            rows,
            constant(model, f"{layer.path}.matrix", matrix),
            layer.activation.inputs[1],
            constant(model, f"{layer.path}.scales", scales.astype(np.float32)),
            layer.activation.inputs[2],
            None,
            None if bias is None else constant(model, f"{layer.path}.bias", bias),
        ],
        domain="com.microsoft",
    )


def _reshape(model: ir.Model, value: ir.Value, shape: Sequence[int]) -> ir.Node:
    """Reshape; 0 keeps an axis as it is."""
    return ir.node("Reshape", [value, constant(model, "shape", np.array(shape, np.int64))])


def _image_size(value: ir.Value | None) -> tuple[int, int] | None:
    axes = list(value.shape or ()) if value is not None else []
    if len(axes) != 4 or not all(isinstance(axis, int) for axis in axes[2:]):
        return None
    return axes[2], axes[3]  # type: ignore[return-value]
