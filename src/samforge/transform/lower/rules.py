"""Which module takes the place of which operator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import Node

from samforge.transform.lower.activation import FastGelu
from samforge.transform.lower.attention_rules import attention, streamed_attention_before
from samforge.transform.lower.context import (
    Replacement,
    Rule,
    RuleContext,
    argument,
    operator_name,
)
from samforge.transform.lower.convolution import (
    PatchConvolution,
    ScatteredConvolution,
    TypedConvolution,
    folded_pointwise,
)
from samforge.transform.lower.float_linear import MOST_INPUTS, FloatLinear
from samforge.transform.lower.linear import Fp8Linear, Fp8Mlp, TypedLinear, fits_fp8
from samforge.transform.lower.normalization import TypedGroupNorm, TypedLayerNorm
from samforge.transform.lower.relu import ReluLinear


def _linear(node: Node, context: RuleContext) -> Replacement | None:
    if (mlp := _mlp(node, context)) is not None:
        return mlp
    weight = context.constant(argument(node, 1, "weight"))
    if weight is None:
        return None
    if (quantized := _fp8_linear(node, context)) is not None:
        if (attending := streamed_attention_before(node, context)) is not None:
            attending.quantize(quantized.inverse)
        return Replacement(module=quantized, arguments=(cast(Node, node.args[0]),), format="fp8")
    bias = context.constant(argument(node, 2, "bias"))
    settings = context.settings
    precision = settings.linear_precision(context.path(node))
    dtype = torch.float32 if precision == "fp32" else settings.compute
    amid_half = dtype != settings.compute
    if amid_half and weight.shape[1] <= MOST_INPUTS:
        module: TypedLinear = FloatLinear(weight, bias)
    else:
        module = TypedLinear(weight, bias, dtype)
    return Replacement(module=module, arguments=(cast(Node, node.args[0]),), format=_format(dtype))


def _mlp(node: Node, context: RuleContext) -> Replacement | None:
    """Two fp8 linears with GELU between them; the second is where all three are replaced."""
    middle = node.args[0]
    front = middle.args[0] if _is(middle, "gelu") and isinstance(middle, Node) else None
    if not (
        isinstance(middle, Node) and isinstance(front, Node) and context.settings.gelu == "fast"
    ):
        return None
    if len(front.users) == len(middle.users) == 1:
        first = context.lowered(front)
        second = _fp8_linear(node, context)
        if isinstance(first, Fp8Linear) and second is not None:
            return Replacement(
                module=Fp8Mlp(first, second),
                arguments=(cast(Node, front.args[0]),),
                format="fp8",
            )
    return None


def _fp8_linear(node: Node, context: RuleContext) -> Fp8Linear | None:
    """The linear at a node in FP8, where settings, shape and what it reads allow it."""
    weight = context.constant(argument(node, 1, "weight"))
    settings, path = context.settings, context.path(node)
    if weight is None or settings.linear_precision(path) != "fp8" or not fits_fp8(weight):
        return None
    attended = streamed_attention_before(node, context) is not None
    if settings.wants_quantized(path) and not attended:
        return None
    bias = context.constant(argument(node, 2, "bias"))
    return Fp8Linear(weight, bias, settings.scales[path], settings.compute, settings.weight_scales)


def _convolution(node: Node, context: RuleContext) -> Replacement | None:
    weight = context.constant(argument(node, 1, "weight"))
    if weight is None:
        return None
    bias = context.constant(argument(node, 2, "bias"))
    transposed = "transpose" in str(node.target)
    dtype = context.settings.compute
    settings: dict[str, Any] = {
        "stride": _pair(argument(node, 3, "stride", 1)),
        "padding": _pair(argument(node, 4, "padding", 0)),
    }
    groups = argument(node, 6, "groups", 1)
    plain = (
        groups == 1
        and settings["padding"] == (0, 0)
        and settings["stride"] == tuple(weight.shape[-2:])
        and weight.shape[-1] == weight.shape[-2]
    )
    if plain:
        kind = ScatteredConvolution if transposed else PatchConvolution
        module: nn.Module = kind(weight, bias, dtype)
    else:
        settings["groups"] = groups
        if transposed:
            settings["output_padding"] = _pair(argument(node, 5, "output_padding", 0))
            settings["dilation"] = _pair(argument(node, 7, "dilation", 1))
        else:
            settings["dilation"] = _pair(argument(node, 5, "dilation", 1))
        module = TypedConvolution(weight, bias, dtype, transposed, **settings)
    return Replacement(module=module, arguments=(cast(Node, node.args[0]),), format=_format(dtype))


def _relu(node: Node, context: RuleContext) -> Replacement | None:
    """ReLU inside what it alone reads: a norm, or a linear with a bias."""
    front = cast(Node, node.args[0])
    before = context.lowered(front)
    if before is None or len(front.users) > 1:
        return None
    source = (cast(Node, front.args[0]),)
    if isinstance(before, TypedGroupNorm):
        before.relu = True
        return Replacement(module=before, arguments=source)
    if not isinstance(before, TypedLinear) or before.bias is None:
        return None
    if context.settings.precision == "fp32":
        return None
    if isinstance(before, FloatLinear):
        before.relu = True
        return Replacement(module=before, arguments=source)
    if before.dtype == torch.float32:
        return None  # cuBLASLt's float32 kernels with an epilogue: 10 and 16 us for 6.5 on an H200
    return Replacement(module=ReluLinear(before), arguments=source)


def _gelu(node: Node, context: RuleContext) -> Replacement | None:
    settings = context.settings
    if settings.gelu == "exact" or argument(node, 1, "approximate", "none") != "none":
        return None
    return Replacement(module=FastGelu(settings.compute), arguments=(cast(Node, node.args[0]),))


def _layer_norm(node: Node, context: RuleContext) -> Replacement | None:
    weight = context.constant(argument(node, 2, "weight"))
    bias = context.constant(argument(node, 3, "bias"))
    module = TypedLayerNorm(
        tuple(cast("list[int]", node.args[1])),
        weight,
        bias,
        argument(node, 4, "eps", 1e-5),
        context.settings.normed,
    )
    return Replacement(module=module, arguments=(cast(Node, node.args[0]),))


def _group_norm(node: Node, context: RuleContext) -> Replacement | None:
    module = TypedGroupNorm(
        cast(int, node.args[1]),
        context.constant(argument(node, 2, "weight")),
        context.constant(argument(node, 3, "bias")),
        argument(node, 4, "eps", 1e-5),
        context.settings.compute,
    )
    return Replacement(module=module, arguments=(cast(Node, node.args[0]),))


class Product(nn.Module):
    """A matrix product of two computed tensors in one type."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Multiply."""
        return torch.matmul(first.to(self.dtype), second.to(self.dtype))


def _matmul(node: Node, context: RuleContext) -> Replacement | None:
    first, second = node.args
    dtype = context.settings.compute
    if context.settings.linear_precision(context.path(node)) == "fp32":
        dtype = torch.float32
    weight = context.constant(second)
    if weight is not None and weight.ndim == 2:
        return Replacement(
            module=TypedLinear(weight.t(), None, dtype), arguments=(cast(Node, first),)
        )
    return Replacement(module=Product(dtype), arguments=(cast(Node, first), cast(Node, second)))


RULES: dict[str, Rule] = {
    "linear": _linear,
    "conv2d": _convolution,
    "conv_transpose2d": _convolution,
    "scaled_dot_product_attention": attention,
    "gelu": _gelu,
    "relu": _relu,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "matmul": _matmul,
}
"""By the operator's name without its overload."""


def folded_convolutions(context: RuleContext) -> Iterator[Node]:
    """Fold every 1 x 1 convolution that directly follows a transposed one into it.

    Yields:
        Nodes that nothing uses any more.
    """
    graph = context.module.graph
    for node in list(graph.nodes):
        front = node.args[0] if node.args else None
        if not (_is(node, "conv2d") and _is(front, "conv_transpose2d")):
            continue
        front = cast(Node, front)
        pointwise, scattered = (
            (context.constant(one.args[1]), context.constant(argument(one, 2, "bias")))
            for one in (node, front)
        )
        stride = _pair(argument(front, 3, "stride", 1))
        if (
            pointwise[0] is None
            or scattered[0] is None
            or len(front.users) != 1
            or tuple(pointwise[0].shape[-2:]) != (1, 1)
            or stride != tuple(scattered[0].shape[-2:])
        ):
            continue
        weight, bias = folded_pointwise((scattered[0], scattered[1]), (pointwise[0], pointwise[1]))
        for suffix, value in (("weight", weight), ("bias", bias)):
            context.module.register_buffer(f"folded_{front.name}_{suffix}", value)
        with graph.inserting_before(front):
            constants = [graph.get_attr(f"folded_{front.name}_{s}") for s in ("weight", "bias")]
        front.args = (front.args[0], *constants, *front.args[3:])
        front.kwargs = {key: value for key, value in front.kwargs.items() if key != "bias"}
        node.replace_all_uses_with(front)
        yield node


def _is(node: Any, name: str) -> bool:
    return operator_name(node) == name


def _pair(value: Any) -> tuple[int, int]:
    pair = [value, value] if isinstance(value, int) else list(value)
    return (pair[0], pair[-1])


def _format(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]
