"""Which operators of a half-precision graph compute in half and which stay float: a plan, as data.

The default keeps what transformers in half are known to lose accuracy in. Source of the islands:
NVIDIA's build of SAM-like models keeps rotary, LayerNorm, residual and GELU in float32; Meta keeps
the decoder's heads out of autocast; rounding rotary tables costs up to 0.04 in the cosine.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from fnmatch import fnmatch

import onnx_ir as ir

from samforge.core.errors import SettingError
from samforge.transform.onnx.graph import array_of, consumers, layer_path, only_consumer, producer

TYPES = {"half": ir.DataType.FLOAT16, "float": ir.DataType.FLOAT}
FLOATS = set(TYPES.values())

PRODUCTS = {"MatMul", "Gemm", "Conv", "ConvTranspose", "MultiHeadAttention"}
"""Computed in half: this is where the time goes."""
MOVES = {
    *("Reshape", "Transpose", "Slice", "Split", "Concat", "Squeeze", "Unsqueeze", "Expand"),
    *("Tile", "Pad", "Gather", "Identity", "Flatten", "Where", "Neg", "Relu", "MaxPool"),
    *("Resize",),
}
"""Exact in every type: they take the type that their readers want."""
SCORES = {"Add", "Mul", "Div", "Sub", "Where"}
"""What may stand between the product of queries and keys and its softmax: scale, mask, bias."""
KEPT = ("*presence*", "*box_head*", "*boxes_direct*")
"""Modules that stay float: few multiplications, and their error moves boxes and scores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Number format, ``half`` or ``float``, of what surrounds the products."""

    softmax: str = "float"
    """Softmax of attention with its mask and bias; TensorRT's fused kernels want it half."""
    rotary: str = "float"
    """Products with rotary tables and their sum."""
    layer_norm: str = "float"
    """LayerNormalization."""
    residual: str = "float"
    """Additions of two computed values in front of a LayerNormalization."""
    gelu: str = "float"
    """GELU, in one operator or written out with erf."""
    keep: tuple[str, ...] = KEPT
    """Module path patterns (``*`` matches anything) in which every operator stays float."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "keep" and value not in TYPES:
                raise SettingError(f"plan.{field.name} is half or float, got {value!r}.")


SAFE = Plan()
"""The default of processors: everything but products is float."""
TENSORRT = Plan(softmax="half")
"""The attention core entirely half, so that TensorRT fuses it; all else as in ``SAFE``."""
CUDA = Plan(softmax="half", rotary="half", layer_norm="half", gelu="half")
"""Of ONNX Runtime on CUDA, whose kernels read and write halves and sum in float: what is kept float
is the residual stream, where roundings of every layer would add up. Its rotary kernel alone
multiplies in half, one rounding of a value that is rounded for the attention next to it anyway."""


def planned_type(node: ir.Node, plan: Plan, core: set[ir.Node]) -> ir.DataType | None:
    """Number format that the plan gives a node, or None for one that takes its readers'.

    Args:
        node: An operator on floating point values.
        plan: The plan.
        core: From :func:`attention_core`.
    """
    if any(fnmatch(layer_path(node), pattern) for pattern in plan.keep):
        return ir.DataType.FLOAT
    if node in core:
        return TYPES[plan.softmax]
    if node.op_type in PRODUCTS or _adds_bias(node):
        return ir.DataType.FLOAT16
    moves = node.op_type in MOVES | {"QuantizeLinear", "DequantizeLinear"}
    if moves or (node.op_type in {"Mul", "Div"} and _scales(node)):
        return None
    return TYPES[_surrounding(node, plan)]


def _surrounding(node: ir.Node, plan: Plan) -> str:
    """Format of what is neither a product nor a move; float where the plan has no word for it."""
    if node.op_type in {"Gelu", "BiasGelu", "Erf"} or _in_written_gelu(node):
        return plan.gelu
    if node.op_type == "LayerNormalization":
        return plan.layer_norm
    if node.op_type == "RotaryEmbedding" or _is_rotary(node):
        return plan.rotary
    residual = node.op_type == "SkipLayerNormalization" or _is_residual(node)
    return plan.residual if residual else "float"


def attention_core(model: ir.Model) -> set[ir.Node]:
    """Softmax of every attention with what stands between the scores and it."""
    core: set[ir.Node] = set()
    for softmax in model.graph:
        if softmax.op_type != "Softmax":
            continue
        found, node = {softmax}, _scores_side(softmax)
        while node is not None and node.op_type in SCORES | {"Reshape"}:
            found.add(node)
            node = _scores_side(node)
        if node is not None and node.op_type == "MatMul":
            core |= found
    return core


def _scores_side(node: ir.Node) -> ir.Node | None:
    """The node before, on the way to the product of queries and keys."""
    makers = [value.producer() for value in node.inputs if value is not None]
    before = [one for one in makers if one is not None]
    for operators in ({"MatMul"}, SCORES | {"Reshape"}):
        for one in before:
            if one.op_type in operators and _comes_from_product(one):
                return one
    return None


def _comes_from_product(node: ir.Node, depth: int = 6) -> bool:
    """Whether a product of two computed values lies within a few elementwise steps."""
    if node.op_type == "MatMul":
        weight = producer(node.inputs[1], "DequantizeLinear", "Transpose")
        return array_of(node.inputs[1]) is None and (
            weight is None or array_of(weight.inputs[0]) is None
        )
    if depth == 0 or node.op_type not in SCORES | {"Reshape"}:
        return False
    before = [value.producer() for value in node.inputs if value is not None]
    return any(one is not None and _comes_from_product(one, depth - 1) for one in before)


def _adds_bias(node: ir.Node) -> bool:
    """A vector added to what a product gives."""
    return (
        node.op_type == "Add"
        and any(producer(value, "MatMul") for value in node.inputs)
        and any((a := array_of(value)) is not None and a.ndim == 1 for value in node.inputs)
    )


def _scales(node: ir.Node) -> bool:
    """Multiplies by one number."""
    return any((a := array_of(value)) is not None and a.size == 1 for value in node.inputs)


def _is_rotary(node: ir.Node) -> bool:
    """A product with a table over tokens and channels, or the sum of two of them."""
    if node.op_type == "Mul":
        return any(_is_table(value) for value in node.inputs)
    if node.op_type == "Add":
        return all(
            (mul := producer(value, "Mul")) is not None and _is_rotary(mul) for value in node.inputs
        )
    return False


def _is_table(value: ir.Value | None) -> bool:
    array = array_of(value)
    return array is not None and sum(axis > 1 for axis in array.shape) >= 2


def _is_residual(node: ir.Node) -> bool:
    """An addition of computed values that a LayerNormalization reads, past others of its kind."""
    if node.op_type != "Add" or any(array_of(value) is not None for value in node.inputs):
        return False
    waiting, seen = [node], {node}
    while waiting:
        for reader in consumers(waiting.pop().outputs[0]):
            if reader.op_type == "LayerNormalization":
                return True
            if reader not in seen and reader.op_type in MOVES | {"Add"}:
                seen.add(reader)
                waiting.append(reader)
    return False


def _in_written_gelu(node: ir.Node) -> bool:
    """``x * (erf(x / sqrt 2) + 1) / 2``: what stands right behind the Erf."""
    if node.op_type not in {"Add", "Mul"}:
        return False
    waiting = [value.producer() for value in node.inputs if value is not None]
    for before in waiting:
        if before is None or (before.op_type not in {"Erf", "Add", "Mul"}):
            continue
        if before.op_type == "Erf":
            return True
        inner = [value.producer() for value in before.inputs if value is not None]
        erf = [one for one in inner if one is not None and one.op_type == "Erf"]
        if erf and only_consumer(before.outputs[0], node.op_type) is node:
            return True
    return False
