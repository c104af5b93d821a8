"""Safer forms of attention: deliberately less fused, or computed in float32.

TensorRT's fused attention is silently wrong on some GPUs and versions (NVIDIA/TensorRT#4837,
#4826). A graph in another form computes the same and avoids those kernels, at a price in time.
"""

from __future__ import annotations

import onnx_ir as ir

from samforge.core.errors import SettingError
from samforge.transform.onnx.attention_pattern import BEFORE, HALF, Attention, attentions

FORMS = ("fused", "unfused-windows", "unfused", "float")
"""From the fastest to the safest; the same names as in ``samforge.backends.tensorrt.ladder``."""


def forms_of(model: ir.Model) -> tuple[str, ...]:
    """Forms that differ for this graph, from the fastest to the safest."""
    found = [attention for attention in attentions(model) if attention.fusable]
    if not found:
        return ("fused",)
    return FORMS if _windows(found) else tuple(f for f in FORMS if f != "unfused-windows")


def reform_attention(model: ir.Model, form: str) -> ir.Model:
    """Bring every fusable attention into a form, in place.

    ``unfused-windows`` takes apart those over fewer keys than the largest, which are the windows of
    an image encoder; ``unfused`` all of them; ``float`` computes all of them in float32.

    Args:
        model: With half-precision attention, from ``cast_half``.
        form: One of ``FORMS``.

    Returns:
        The same model. Values do not change in the first three forms: a Relu over probabilities
        breaks the fusion and nothing else.

    Raises:
        SettingError: There is no such form.
    """
    if form not in FORMS:
        raise SettingError(f"There is no form '{form}' of attention. Forms: {', '.join(FORMS)}.")
    found = [attention for attention in attentions(model) if attention.fusable]
    chosen = _windows(found) if form == "unfused-windows" else found
    for index, attention in enumerate(chosen):
        if form == "float":
            _widen(model, attention, f"float_attention_{index}")
        elif form != "fused":
            _separate(model, attention, f"unfused_attention_{index}")
    return model


def _windows(found: list[Attention]) -> list[Attention]:
    known = [attention.tokens for attention in found if attention.tokens is not None]
    return [a for a in found if a.tokens is not None and a.tokens < max(known)]


def _separate(model: ir.Model, attention: Attention, name: str) -> None:
    """A Relu behind the softmax: probabilities are never negative."""
    old = attention.softmax.outputs[0]
    relu = ir.node("Relu", [old], name=name)
    new = relu.outputs[0]
    new.name, new.shape, new.type = name, old.shape, old.type
    for user, index in list(old.uses()):
        if user is not relu:
            user.replace_input_with(index, new)
    model.graph.insert_after(attention.softmax, relu)


def _widen(model: ir.Model, attention: Attention, name: str) -> None:
    """Casts around: operands to float32, the result back to its type."""
    result = attention.context.outputs[0]
    narrow = result.dtype
    path = [attention.scores, *_path(attention), attention.softmax, *attention.between]
    path.append(attention.context)
    inside = {id(output) for node in path for output in node.outputs}
    for number, node in enumerate(path):
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype in HALF and id(value) not in inside:
                cast = _cast(value, ir.DataType.FLOAT, f"{name}_{number}_{index}")
                model.graph.insert_before(node, cast)
                node.replace_input_with(index, cast.outputs[0])
        if node.op_type == "Cast":
            node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT)
    users = [(user, index) for user, index in result.uses() if id(user) not in set(map(id, path))]
    back = _cast(result, narrow or ir.DataType.FLOAT16, f"{name}_back")
    model.graph.insert_after(attention.context, back)
    for user, index in users:
        user.replace_input_with(index, back.outputs[0])
    for node in path:
        for output in node.outputs:
            output.type = ir.TensorType(ir.DataType.FLOAT)


def _path(attention: Attention) -> list[ir.Node]:
    """Nodes between the scores and the softmax, in order."""
    path: list[ir.Node] = []
    value = attention.scores.outputs[0]
    while True:
        users = [user for user in value.consumers() if user.op_type in BEFORE]
        if attention.softmax in list(value.consumers()) or not users:
            return path
        path.append(users[0])
        value = users[0].outputs[0]


def _cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    cast = ir.node("Cast", [value], {"to": dtype}, name=name)
    cast.outputs[0].name, cast.outputs[0].shape = name, value.shape
    cast.outputs[0].type = ir.TensorType(dtype)
    return cast
