"""fp32 or Q/DQ graph -> the form of it that a target runs best in the recipe's precision."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from samforge.core.recipe import Recipe
from samforge.core.targets import QUANTIZED, target_from_name
from samforge.transform.onnx.attention_kernels import fuse_attention
from samforge.transform.onnx.blocks import block_attention
from samforge.transform.onnx.cuda_flavour import to_cuda
from samforge.transform.onnx.e4m3 import to_e4m3
from samforge.transform.onnx.embeddings import embeddings_to_int8
from samforge.transform.onnx.half import cast_half
from samforge.transform.onnx.openvino_flavour import to_openvino
from samforge.transform.onnx.precision_plan import SAFE
from samforge.transform.onnx.tensorrt_flavour import tensorrt_flavour
from samforge.transform.onnx.u8s8 import to_u8s8
from samforge.transform.onnx.weight_only import weights_to_int8


def flavoured(model: ir.Model, recipe: Recipe, *, quantized: bool = True) -> ir.Model:
    """Give a graph the number formats of a recipe, in place.

    Args:
        model: fp32, with symmetric int8 Q/DQ where the precision is int8 or fp8.
        recipe: Says the target and the precision.
        quantized: Whether the graph is one that int8 and fp8 bundles quantize. Others stay in the
            float format that the target has beside them.

    Returns:
        The same model.
    """
    name = target_from_name(recipe.target).forms[recipe.precision]
    if recipe.precision in QUANTIZED and not quantized:
        return BESIDE[name](model)
    return FORMS[name](model, recipe.precision)


def _openvino(model: ir.Model, precision: str) -> ir.Model:
    return to_openvino(embeddings_to_int8(model) if precision in QUANTIZED else model)


def _cuda(model: ir.Model, precision: str) -> ir.Model:
    return to_cuda(model, precision)


FORMS: dict[str, Callable[[ir.Model, str], ir.Model]] = {
    "plain": lambda model, _: block_attention(model),
    "half": lambda model, _: cast_half(model, SAFE),
    "u8s8": lambda model, _: fuse_attention(to_u8s8(embeddings_to_int8(model))),
    "e4m3": lambda model, _: to_e4m3(embeddings_to_int8(model)),
    "weights": lambda model, _: embeddings_to_int8(weights_to_int8(model)),
    "openvino graph": _openvino,
    "tensorrt graph": tensorrt_flavour,
    "cuda graph": _cuda,
}
"""What a graph can become, by the names in the table of targets."""
BESIDE: dict[str, Callable[[ir.Model], ir.Model]] = {
    "u8s8": block_attention,
    "e4m3": block_attention,
    "openvino graph": to_openvino,
    "tensorrt graph": lambda model: tensorrt_flavour(model, "fp16"),
}
"""What a graph becomes that an int8 or fp8 bundle does not quantize, by the same names."""
