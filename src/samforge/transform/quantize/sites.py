"""Where a graph multiplies: linears, convolutions and matrix products, each with its share."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

aten = torch.ops.aten

WEIGHTED: dict[Any, tuple[str, int]] = {
    aten.linear.default: ("linear", 0),
    aten.conv2d.default: ("conv2d", 0),
    aten.conv_transpose2d.input: ("conv_transpose2d", 1),
}
"""Operators with a weight that can be int8: their name in settings, the weight's output axis."""
INPUT_AXES = {"linear": (-1, 1), "conv2d": (1, 1), "conv_transpose2d": (1, 0)}
"""Which axis of the input and which of the weight counts input channels."""
PRODUCTS: dict[Any, str] = {
    aten.matmul.default: "matmul",
    aten.bmm.default: "matmul",
    aten.einsum.default: "matmul",
    aten.scaled_dot_product_attention.default: "matmul",
}
"""Products of two activations."""
OPERATORS = ("linear", "conv2d", "conv_transpose2d", "matmul")
"""Names that ``Quantization.skip_operators`` may hold."""
BLOCK = re.compile(r"^(?P<block>.*?\.\d+)\.(?P<inner>attention|\w*attn|mlp)\.")
INDEXED = re.compile(r"^(?P<block>.*?\.\d+)(?:\.|$)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """One operator that multiplies."""

    node: str
    """Its name in the graph, unique."""
    path: str
    """Module path of its weight's owner, or of the module it stands in."""
    operator: str
    """One of :data:`OPERATORS`."""
    input: str
    """Node whose result it multiplies."""
    weight: str | None
    """Name of its constant weight; None where both factors are computed."""
    channel_axis: int
    """Axis of the weight that counts output channels."""
    products: int
    """Multiplications for one image and one prompt."""

    @property
    def input_axis(self) -> int:
        """Axis of its input that counts channels."""
        return INPUT_AXES[self.operator][0]

    @property
    def column_axis(self) -> int:
        """Axis of its weight that counts input channels."""
        return INPUT_AXES[self.operator][1]

    @property
    def group(self) -> str:
        """What is quantized or kept together with it: :func:`group_from_path`."""
        return group_from_path(self.path)


def group_from_path(path: str) -> str:
    """Name the block a layer belongs to.

    The attention and the MLP of an indexed block are groups of their own, everything else in it is
    one: ``layers.3.attention.q_proj`` is in ``layers.3.attention``, ``levels.0.proj1`` in
    ``levels.0``, ``masks.prompt_attention.k_proj`` in ``masks.prompt_attention``.
    """
    block = BLOCK.match(path)
    if block:
        return f"{block['block']}.{block['inner']}"
    indexed = INDEXED.match(path)
    if indexed:
        return indexed["block"]
    return path.rpartition(".")[0] or path


def sites_from_graph(graph: GraphModule) -> tuple[Site, ...]:
    """Find every operator that multiplies, in order."""
    return tuple(_sites(graph))


def _sites(graph: GraphModule) -> Iterator[Site]:
    for node in graph.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target in WEIGHTED:
            operator, axis = WEIGHTED[node.target]
            weight = node.args[1]
            constant = str(weight.target) if weight.op == "get_attr" else None
            yield Site(
                node=node.name,
                path=path_of(node, constant),
                operator=operator,
                input=node.args[0].name,
                weight=constant,
                channel_axis=axis,
                products=_COUNTS[operator](node),
            )
        elif node.target in PRODUCTS:
            count = _COUNTS.get(str(node.target.overloadpacket.__name__), _matmul_products)
            yield Site(
                node=node.name,
                path=path_of(node, None),
                operator=PRODUCTS[node.target],
                input=_first_tensor(node).name,
                weight=None,
                channel_axis=0,
                products=count(node),
            )


def arguments(node: Node) -> tuple[Any, ...]:
    """Arguments of an operator whose signature is known; torch's own type allows anything."""
    return node.args


def _first_tensor(node: Node) -> Node:
    return node.all_input_nodes[0]


def path_of(node: Node, weight: str | None) -> str:
    """Module path of an operator: the owner of its weight.

    A name that tells nothing (``masks.upsampling_0``) stays whole.
    """
    if weight is not None and "." in weight:
        return weight.removesuffix(".weight")
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else ""
    return path or node.name


def _shape(node: Any) -> tuple[int, ...]:
    """Shape for one image and one prompt: every dynamic axis counts as 1."""
    return tuple(_length(axis) for axis in node.meta["val"].shape)


def _length(axis: int | torch.SymInt) -> int:
    if isinstance(axis, int):
        return axis
    expression = axis.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, 1)))


def _linear_products(node: Node) -> int:
    return math.prod(_shape(node)) * _shape(node.args[1])[1]


def _conv_products(node: Node) -> int:
    return math.prod(_shape(node)) * math.prod(_shape(node.args[1])[1:])


def _conv_transpose_products(node: Node) -> int:
    return math.prod(_shape(node.args[0])) * math.prod(_shape(node.args[1])[1:])


def _matmul_products(node: Node) -> int:
    return math.prod(_shape(node)) * _shape(node.args[0])[-1]


def _attention_products(node: Node) -> int:
    query, key = _shape(node.args[0]), _shape(node.args[1])
    return 2 * math.prod(query) * key[-2]


def _einsum_products(node: Node) -> int:
    """Every index once: what a contraction of two tensors multiplies."""
    equation, operands = str(node.args[0]), node.args[1]
    assert isinstance(operands, (list, tuple))  # noqa: S101  # aten's signature
    lengths: dict[str, int] = {}
    terms = equation.partition("->")[0].split(",")
    for indices, operand in zip(terms, operands, strict=True):
        lengths |= dict(zip(indices.strip(), _shape(operand), strict=True))
    return math.prod(lengths.values())


_COUNTS: dict[str, Callable[[Node], int]] = {
    "linear": _linear_products,
    "conv2d": _conv_products,
    "conv_transpose2d": _conv_transpose_products,
    "scaled_dot_product_attention": _attention_products,
    "einsum": _einsum_products,
}


def constant(graph: GraphModule, name: str) -> Tensor:
    """Read a parameter or buffer by its dotted name."""
    owner, _, leaf = name.rpartition(".")
    tensor = getattr(graph.get_submodule(owner), leaf)
    assert isinstance(tensor, Tensor)  # noqa: S101  # get_attr of our graphs are tensors
    return tensor


def replace_constant(graph: GraphModule, name: str, tensor: Tensor) -> None:
    """Put another tensor in place of a parameter or buffer; the old one is left as it is."""
    owner, _, leaf = name.rpartition(".")
    module = graph.get_submodule(owner)
    if leaf in module._parameters:  # noqa: SLF001  # torch has no other way to ask
        setattr(module, leaf, torch.nn.Parameter(tensor, requires_grad=False))
    else:
        setattr(module, leaf, tensor)
