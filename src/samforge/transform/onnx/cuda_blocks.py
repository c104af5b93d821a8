"""What stands around products, in ONNX Runtime's fused operators: GELU and LayerNormalization.

A bias in front of a GELU, and a residual sum in front of a normalization, each cost a pass over the
tensor and a kernel's start of their own. BiasGelu and SkipLayerNormalization of the domain
``com.microsoft`` compute the same in one; the GELU is the exact one, with erf.
"""

from __future__ import annotations

import onnx_ir as ir

from samforge.transform.onnx.attention_kernels import DOMAIN
from samforge.transform.onnx.graph import (
    array_of,
    consumers,
    only_consumer,
    producer,
    replace,
    set_type,
    tidy,
)


def fuse_bias_gelu(model: ir.Model) -> ir.Model:
    """Replace every GELU behind a product and its bias, in place."""
    for gelu in [node for node in model.graph if node.op_type == "Gelu"]:
        total = producer(gelu.inputs[0], "Add")
        if total is None or only_consumer(total.outputs[0], "Gelu") is None:
            continue
        exact = gelu.attributes.get_string("approximate", "none") == "none"
        found = _product_and_bias(total) if exact else None
        if found is None:
            continue
        fused = ir.node("BiasGelu", found, domain=DOMAIN)
        set_type(fused.outputs[0], gelu.outputs[0].dtype)
        replace([total, gelu], [fused], fused.outputs[0])
        model.opset_imports[DOMAIN] = 1
    tidy(model)
    return model


def fuse_skip_norm(model: ir.Model) -> ir.Model:
    """Replace every LayerNormalization of a sum of two tensors of three axes, in place.

    The bias of the product that makes one of them goes along; the sum stays there for others. The
    operator takes no tensors of four axes: those of an image encoder stay as they are.
    """
    for norm in [node for node in model.graph if node.op_type == "LayerNormalization"]:
        total = producer(norm.inputs[0], "Add")
        if total is not None and _fits(total, norm):
            _skip(model, total, norm)
    tidy(model)
    return model


def _fits(total: ir.Node, norm: ir.Node) -> bool:
    """Whether both sides have the shape of their sum, of three axes, and the norm is whole."""
    shapes = [list(value.shape or ()) for value in (*total.inputs, *total.outputs) if value]
    last = norm.attributes.get_int("axis", -1) in (-1, len(shapes[-1]) - 1)
    return (
        last
        and len(shapes[-1]) == 3
        and all(list(map(str, shape)) == list(map(str, shapes[-1])) for shape in shapes)
        and len(norm.inputs) == 3
        and len(norm.outputs) == 1
        and all(array_of(value) is None for value in total.inputs)
    )


def _skip(model: ir.Model, total: ir.Node, norm: ir.Node) -> None:
    sides, bias, old = list(total.inputs), None, total
    for index, value in enumerate(total.inputs):
        linear = producer(value, "Add")
        if linear is None or only_consumer(linear.outputs[0], "Add") is not total:
            continue
        found = _product_and_bias(linear)
        if found is not None:
            sides[index], bias, old = found[0], found[1], linear
            break
    epsilon = {"epsilon": norm.attributes.get_float("epsilon", 1e-5)}
    given = [*sides, *norm.inputs[1:], *([bias] if bias is not None else [])]
    fused = ir.node("SkipLayerNormalization", given, epsilon, num_outputs=4, domain=DOMAIN)
    normal, *unused, stream = fused.outputs
    for value in unused:
        value.name = ""
    for new, made_by in ((normal, norm), (stream, total)):
        result = made_by.outputs[0]
        set_type(new, result.dtype)
        new.shape = result.shape
        new.name, result.name = result.name, None
        fused.metadata_props.update(made_by.metadata_props)
    total.prepend(fused)
    norm.outputs[0].replace_all_uses_with(normal, replace_graph_outputs=True)
    total.outputs[0].replace_all_uses_with(stream, replace_graph_outputs=True)
    model.graph.remove([norm, total, *([old] if old is not total else [])], safe=True)
    model.opset_imports[DOMAIN] = 1


def _product_and_bias(total: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """What a linear multiplies, and the vector it adds."""
    for product, bias in (total.inputs, reversed(total.inputs)):
        array = array_of(bias)
        if producer(product, "MatMul") is None or array is None or array.ndim != 1:
            continue
        if product is not None and bias is not None and len(consumers(product)) == 1:
            return product, bias
    return None
