"""Values as wide as queries: TensorRT for RTX fuses attention whose heads have one width.

The tracker attends with 256 channels to memories of 64, and projects what comes out. Version 1.7
computes such an attention as separate products around a softmax, whose scores are 5,184 by some
36,000 numbers an object. With values that zeros widen it is fused; what the zeros give is cut
off, and no number changes.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from samforge.transform.onnx.attention_pattern import attentions
from samforge.transform.onnx.graph import constant


def widen_values(model: ir.Model) -> int:
    """Pad the values of every fusable attention to the width of its queries, in place.

    Args:
        model: With half-precision attention, from ``cast_half``.

    Returns:
        How many attentions had narrower values.
    """
    padded: dict[int, ir.Value] = {}
    count = 0
    for attention in attentions(model):
        values, wanted = attention.operands[-1], attention.head_size
        width = _width(values)
        if not attention.fusable or width is None or wanted is None or width >= wanted:
            continue
        if id(values) not in padded:
            name = f"wide_values_{len(padded)}"
            padded[id(values)] = _padded(model, values, (width, wanted), name)
        index = attention.context.inputs.index(values)
        attention.context.replace_input_with(index, padded[id(values)])
        _cut(model, attention.context, wanted, width, f"narrow_context_{count}")
        count += 1
    return count


def _width(value: ir.Value) -> int | None:
    last = value.shape[-1] if value.shape else None
    return last if isinstance(last, int) else None


def _padded(model: ir.Model, values: ir.Value, widths: tuple[int, int], name: str) -> ir.Value:
    """The same values with zeros behind the channels, once for all that attend to them."""
    assert values.shape is not None  # noqa: S101  # its width is known
    pads = np.zeros(2 * len(values.shape), np.int64)
    pads[-1] = widths[1] - widths[0]
    node = ir.node("Pad", [values, constant(model, f"{name}_pads", pads)], name=name)
    (out,) = node.outputs
    out.name, out.type = name, values.type
    out.shape = ir.Shape([*values.shape[:-1], widths[1]])
    first = next(user for user in model.graph if values in user.inputs)
    model.graph.insert_before(first, node)
    return out


def _cut(model: ir.Model, context: ir.Node, wide: int, width: int, name: str) -> None:
    """Keep the first channels of what an attention gives, under its name."""
    (result,) = context.outputs
    bounds = [
        constant(model, f"{name}_{word}", np.array([number]))
        for word, number in (("from", 0), ("to", width), ("axis", -1))
    ]
    node = ir.node("Slice", [], name=name, num_outputs=1)
    (out,) = node.outputs
    out.type, out.shape = result.type, result.shape
    result.replace_all_uses_with(out, replace_graph_outputs=True)
    out.name, result.name = result.name, f"{name}_wide"
    node.resize_inputs(1 + len(bounds))
    for place, value in enumerate([result, *bounds]):
        node.replace_input_with(place, value)
    if result.shape is not None:
        result.shape = ir.Shape([*result.shape[:-1], wide])
    model.graph.insert_after(context, node)
