"""Which module takes the place of which operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from samforge.transform.lower.activation import FastGelu
from samforge.transform.lower.attention import Attention
from samforge.transform.lower.biased_attention import BiasedAttention
from samforge.transform.lower.convolution import (
    PatchConvolution,
    ScatteredConvolution,
    TypedConvolution,
    folded_pointwise,
)
from samforge.transform.lower.few_keys import FEW_KEYS, FewKeysAttention, biases_few_keys
from samforge.transform.lower.float_linear import MOST_INPUTS, FloatLinear
from samforge.transform.lower.grid_bias import embedding_before, grid_bias_from_mask
from samforge.transform.lower.linear import Fp8Linear, Fp8Mlp, TypedLinear, fits_fp8
from samforge.transform.lower.normalization import TypedGroupNorm, TypedLayerNorm
from samforge.transform.lower.relu import ReluLinear, linear_before
from samforge.transform.lower.rotary import rotation_from_node
from samforge.transform.lower.settings import Lowering
from samforge.transform.lower.streamed_attention import StreamedAttention, suits_streaming


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """What replaces an operator."""

    module: nn.Module
    """Holds the converted weights."""
    arguments: tuple[Node, ...]
    """Of the operator's arguments those that are computed."""
    format: str | None = None
    """Number format, for linears and convolutions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Surroundings:
    """What a rule may look at."""

    module: GraphModule
    """Owner of the constants."""
    settings: Lowering
    """What may change."""
    device: str
    """Where constants move."""

    def constant(self, node: Any) -> Tensor | None:
        """Value of a weight, on the device, or None where the argument is absent or computed."""
        if not isinstance(node, Node) or node.op != "get_attr":
            return None
        value: Any = self.module
        for name in str(node.target).split("."):
            value = getattr(value, name)
        return cast(Tensor, value).detach().to(self.device)

    def lowered(self, node: Any) -> nn.Module | None:
        """The module that a node calls, where it has been lowered."""
        if not (isinstance(node, Node) and "lowered" in node.meta):
            return None
        return self.module.get_submodule(str(node.target))

    def path(self, node: Node) -> str:
        """Module path of an operator: that of its weight, or where it was traced."""
        for argument in node.args:
            if isinstance(argument, Node) and argument.op == "get_attr":
                return str(argument.target).rpartition(".")[0]
        stack = node.meta.get("nn_module_stack")
        return str(next(reversed(stack.values()))[0]) if stack else node.name


Rule = Callable[[Node, Surroundings], Made | None]


def argument(node: Node, index: int, name: str, default: Any = None) -> Any:
    """One argument of an operator, however it was passed."""
    if index < len(node.args):
        return node.args[index]
    return node.kwargs.get(name, default)


def _linear(node: Node, surroundings: Surroundings) -> Made | None:
    if (mlp := _mlp(node, surroundings)) is not None:
        return mlp
    weight = surroundings.constant(argument(node, 1, "weight"))
    if weight is None:
        return None
    if (quantized := fp8_linear(node, surroundings)) is not None:
        return Made(module=quantized, arguments=(cast(Node, node.args[0]),), format="fp8")
    bias = surroundings.constant(argument(node, 2, "bias"))
    settings = surroundings.settings
    precision = settings.linear_precision(surroundings.path(node))
    dtype = torch.float32 if precision == "fp32" else settings.compute
    amid_half = dtype != settings.compute
    if amid_half and weight.shape[1] <= MOST_INPUTS:
        module: TypedLinear = FloatLinear(weight, bias)
    else:
        module = TypedLinear(weight, bias, dtype)
    return Made(module=module, arguments=(cast(Node, node.args[0]),), format=_format(dtype))


def _mlp(node: Node, surroundings: Surroundings) -> Made | None:
    """Two fp8 linears with GELU between them; the second is where all three are replaced."""
    middle = node.args[0]
    front = middle.args[0] if _is(middle, "gelu") and isinstance(middle, Node) else None
    if not (
        isinstance(middle, Node)
        and isinstance(front, Node)
        and surroundings.settings.gelu == "fast"
    ):
        return None
    if "lowered" in front.meta and len(front.users) == len(middle.users) == 1:
        first = surroundings.module.get_submodule(str(front.target))
        second = fp8_linear(node, surroundings)
        if isinstance(first, Fp8Linear) and second is not None:
            return Made(
                module=Fp8Mlp(first, second),
                arguments=(cast(Node, front.args[0]),),
                format="fp8",
            )
    return None


def fp8_linear(node: Node, surroundings: Surroundings) -> Fp8Linear | None:
    """The linear at a node in FP8, where settings and shape allow it."""
    weight = surroundings.constant(argument(node, 1, "weight"))
    settings, path = surroundings.settings, surroundings.path(node)
    if weight is None or settings.linear_precision(path) != "fp8" or not fits_fp8(weight):
        return None
    bias = surroundings.constant(argument(node, 2, "bias"))
    return Fp8Linear(weight, bias, settings.scales[path], settings.compute, settings.weight_scales)


def _convolution(node: Node, surroundings: Surroundings) -> Made | None:
    weight = surroundings.constant(argument(node, 1, "weight"))
    if weight is None:
        return None
    bias = surroundings.constant(argument(node, 2, "bias"))
    transposed = "transpose" in str(node.target)
    dtype = surroundings.settings.compute
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
    return Made(module=module, arguments=(cast(Node, node.args[0]),), format=_format(dtype))


def _attention(node: Node, surroundings: Surroundings) -> Made:
    settings = surroundings.settings
    query, key, value = _operands(node)
    mask = argument(node, 3, "attn_mask")
    kernel = settings.attention
    keys = key.meta["val"].shape[-2]
    causal = bool(argument(node, 5, "is_causal", False))
    separable = settings.position_bias == "separable" and settings.precision != "fp32"
    grid_bias = grid_bias_from_mask(mask) if separable and not causal else None
    if grid_bias is not None:
        return _biased_attention(node, surroundings, *grid_bias)
    few = settings.attention in ("fastest", "triton") and settings.precision != "fp32"
    if few and not causal and biases_few_keys(mask, key):
        made = FewKeysAttention(settings.compute, argument(node, 6, "scale"))
        return Made(module=made, arguments=(query, key, value, cast(Node, mask)))
    if causal:
        kernel = "auto"  # the streaming kernel and explicit products know no order
    elif _is_bias(mask) and settings.position_bias == "sdpa":
        kernel = "auto"
    elif mask is not None or (isinstance(keys, int) and keys <= FEW_KEYS):
        kernel = "explicit"
    elif settings.precision == "fp32":
        kernel = "auto"
    elif kernel == "triton" or (
        kernel == "fastest" and suits_streaming(query.meta["val"], key.meta["val"])
    ):
        return _streamed_attention(node, surroundings)
    elif kernel == "fastest":
        kernel = "cudnn"
    module = Attention(
        settings.compute,
        kernel,
        argument(node, 6, "scale"),
        causal,
    )
    given = (query, key, value) if mask is None else (query, key, value, cast(Node, mask))
    return Made(module=module, arguments=given)


def _biased_attention(
    node: Node, surroundings: Surroundings, down: Node, across: Node, plain: int
) -> Made:
    embeddings = None
    found = [embedding_before(part, surroundings.module) for part in (down, across)]
    if found[0] is not None and found[1] is not None:
        (first, down), (second, across) = found[0], found[1]
        embeddings = (first, second)
    module = BiasedAttention(
        surroundings.settings.compute, argument(node, 6, "scale"), plain, embeddings
    )
    return Made(module=module, arguments=(*_operands(node), down, across))


def _streamed_attention(node: Node, surroundings: Surroundings) -> Made:
    """Attention that takes over the rotary encoding of its query and of its key."""
    query, key, value = _operands(node)
    found = [rotation_from_node(one, surroundings) for one in (query, key)]
    sources = [
        one if turn is None else turn[0] for one, turn in zip((query, key), found, strict=True)
    ]
    module = StreamedAttention(
        surroundings.settings.compute,
        argument(node, 6, "scale"),
        *(None if turn is None else turn[1:] for turn in found),
    )
    return Made(module=module, arguments=(*sources, value))


def _operands(node: Node) -> tuple[Node, Node, Node]:
    """Query, key and value."""
    query, key, value = (cast(Node, node.args[index]) for index in range(3))
    return query, key, value


def _is_bias(mask: Any) -> bool:
    """Whether a mask differs from query to query and has many keys."""
    if not isinstance(mask, Node):
        return False
    queries, keys = mask.meta["val"].shape[-2:]
    return queries != 1 and not (isinstance(keys, int) and keys <= FEW_KEYS)


def _relu(node: Node, surroundings: Surroundings) -> Made | None:
    front = node.args[0]
    norm = surroundings.lowered(front)
    if isinstance(norm, TypedGroupNorm) and len(cast(Node, front).users) == 1:
        norm.relu = True
        return Made(module=norm, arguments=(cast(Node, cast(Node, front).args[0]),))
    found = linear_before(node, surroundings.module)
    if found is None or surroundings.settings.precision == "fp32":
        return None
    linear, source = found
    if isinstance(linear, FloatLinear):
        linear.relu = True
        return Made(module=linear, arguments=(source,))
    if linear.dtype == torch.float32:
        return None  # cuBLASLt's float32 kernels with an epilogue: 10 and 16 us for 6.5 on an H200
    return Made(module=ReluLinear(linear), arguments=(source,))


def _gelu(node: Node, surroundings: Surroundings) -> Made | None:
    settings = surroundings.settings
    if settings.gelu == "exact" or argument(node, 1, "approximate", "none") != "none":
        return None
    return Made(module=FastGelu(settings.compute), arguments=(cast(Node, node.args[0]),))


def _layer_norm(node: Node, surroundings: Surroundings) -> Made | None:
    weight = surroundings.constant(argument(node, 2, "weight"))
    bias = surroundings.constant(argument(node, 3, "bias"))
    module = TypedLayerNorm(
        tuple(cast("list[int]", node.args[1])),
        weight,
        bias,
        argument(node, 4, "eps", 1e-5),
        surroundings.settings.normed,
    )
    return Made(module=module, arguments=(cast(Node, node.args[0]),))


def _group_norm(node: Node, surroundings: Surroundings) -> Made | None:
    module = TypedGroupNorm(
        cast(int, node.args[1]),
        surroundings.constant(argument(node, 2, "weight")),
        surroundings.constant(argument(node, 3, "bias")),
        argument(node, 4, "eps", 1e-5),
        surroundings.settings.compute,
    )
    return Made(module=module, arguments=(cast(Node, node.args[0]),))


class Product(nn.Module):
    """A matrix product of two computed tensors in one type."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Multiply."""
        return torch.matmul(first.to(self.dtype), second.to(self.dtype))


def _matmul(node: Node, surroundings: Surroundings) -> Made | None:
    first, second = node.args
    dtype = surroundings.settings.compute
    if surroundings.settings.linear_precision(surroundings.path(node)) == "fp32":
        dtype = torch.float32
    weight = surroundings.constant(second)
    if weight is not None and weight.ndim == 2:
        return Made(module=TypedLinear(weight.t(), None, dtype), arguments=(cast(Node, first),))
    return Made(module=Product(dtype), arguments=(cast(Node, first), cast(Node, second)))


RULES: dict[str, Rule] = {
    "linear": _linear,
    "conv2d": _convolution,
    "conv_transpose2d": _convolution,
    "scaled_dot_product_attention": _attention,
    "gelu": _gelu,
    "relu": _relu,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "matmul": _matmul,
}
"""By the operator's name without its overload."""


def folded_convolutions(surroundings: Surroundings) -> Iterator[Node]:
    """Fold every 1 x 1 convolution that directly follows a transposed one into it.

    Yields:
        Nodes that nothing uses any more.
    """
    graph = surroundings.module.graph
    for node in list(graph.nodes):
        front = node.args[0] if node.args else None
        if not (_is(node, "conv2d") and _is(front, "conv_transpose2d")):
            continue
        front = cast(Node, front)
        pointwise, scattered = (
            (surroundings.constant(one.args[1]), surroundings.constant(argument(one, 2, "bias")))
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
            surroundings.module.register_buffer(f"folded_{front.name}_{suffix}", value)
        with graph.inserting_before(front):
            constants = [graph.get_attr(f"folded_{front.name}_{s}") for s in ("weight", "bias")]
        front.args = (front.args[0], *constants, *front.args[3:])
        front.kwargs = {key: value for key, value in front.kwargs.items() if key != "bias"}
        node.replace_all_uses_with(front)
        yield node


def operator_name(node: Any) -> str:
    """Name of the operator that a node calls, without its overload; empty for other nodes."""
    if not isinstance(node, Node) or node.op != "call_function":
        return ""
    return str(getattr(node.target, "__name__", "")).split(".")[0]


def _is(node: Any, name: str) -> bool:
    return operator_name(node) == name


def _pair(value: Any) -> tuple[int, int]:
    pair = [value, value] if isinstance(value, int) else list(value)
    return (pair[0], pair[-1])


def _format(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]
