"""fp32 or Q/DQ graph -> the form of it that a target runs best in the recipe's precision."""

from __future__ import annotations

import onnx_ir as ir

from samforge.core.recipe import QUANTIZED, Recipe
from samforge.transform.onnx.attention_kernels import fuse_attention
from samforge.transform.onnx.blocks import block_attention
from samforge.transform.onnx.e4m3 import to_e4m3
from samforge.transform.onnx.embeddings import embeddings_to_int8
from samforge.transform.onnx.half import cast_half
from samforge.transform.onnx.openvino_flavour import to_openvino
from samforge.transform.onnx.precision_plan import SAFE
from samforge.transform.onnx.tensorrt_flavour import tensorrt_flavour
from samforge.transform.onnx.u8s8 import to_u8s8
from samforge.transform.onnx.weight_only import weights_to_int8


def flavoured(model: ir.Model, recipe: Recipe) -> ir.Model:
    """Give a graph the number formats of a recipe, in place.

    Args:
        model: fp32, with symmetric int8 Q/DQ where the precision is int8 or fp8.
        recipe: Says the target and the precision.

    Returns:
        The same model.
    """
    if recipe.precision == "int8-weights":
        return embeddings_to_int8(weights_to_int8(model))
    if recipe.target.startswith("tensorrt"):
        return tensorrt_flavour(model, recipe.precision)
    if recipe.precision in QUANTIZED:
        embeddings_to_int8(model)
    if recipe.precision == "fp16":
        return cast_half(model, SAFE)
    if recipe.precision == "fp8":
        return to_e4m3(model)
    if recipe.target == "openvino":
        return to_openvino(model)
    if recipe.precision == "int8" and recipe.target == "onnxruntime":
        return fuse_attention(to_u8s8(model))
    return block_attention(model)
