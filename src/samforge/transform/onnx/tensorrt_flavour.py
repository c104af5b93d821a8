"""fp32 or Q/DQ graph -> the graph that TensorRT builds an engine from."""

from __future__ import annotations

import onnx_ir as ir

from samforge.core.errors import ExportError, SettingError
from samforge.transform.onnx.attention_forms import reform_attention
from samforge.transform.onnx.attention_widths import widen_values
from samforge.transform.onnx.e4m3 import to_e4m3
from samforge.transform.onnx.half import cast_half
from samforge.transform.onnx.hazards import lint
from samforge.transform.onnx.precision_plan import TENSORRT
from samforge.transform.onnx.qdq import quantized_layers, restore

PRECISIONS = ("fp32", "fp16", "int8", "fp8")
"""Number formats of engines. bfloat16 fails on transposed convolutions (TensorRT for RTX 1.7)."""


def tensorrt_flavour(
    model: ir.Model, precision: str, *, form: str = "fused", name: str = "the graph"
) -> ir.Model:
    """Bring a graph into the number formats of an engine, in place.

    fp16 in products and the attention core; float32 in rotary, LayerNorm, residual additions and
    GELU; transposed convolutions in fp16 even where the others are quantized, because TensorRT has
    no 8-bit kernel for them. Values of attention become as wide as its queries, or it is not fused.

    Args:
        model: From ``onnx_from_exported``; with symmetric int8 Q/DQ for ``int8`` and ``fp8``.
        precision: One of ``PRECISIONS``.
        form: Form of attention, one of ``attention_forms.FORMS``.
        name: Of the part, for messages.

    Returns:
        The same model.

    Raises:
        SettingError: TensorRT has no such precision.
        ExportError: The result holds a pattern that TensorRT is known to get wrong or to refuse.
    """
    if precision not in PRECISIONS:
        raise SettingError(
            f"TensorRT engines are built in {', '.join(PRECISIONS)}, not in {precision}."
        )
    if precision != "fp32":
        for layer in quantized_layers(model):
            if layer.node.op_type == "ConvTranspose":
                restore(model, layer)
        if precision == "fp8":
            to_e4m3(model)
        cast_half(model, TENSORRT)
        widen_values(model)
        reform_attention(model, form)
    check_hazards(model, name)
    return model


def check_hazards(model: ir.Model, name: str) -> None:
    """Refuse a graph that TensorRT is known to get wrong or to refuse.

    Raises:
        ExportError: Names every such finding.
    """
    findings = [finding for finding in lint(model) if finding.severity != "slow"]
    if findings:
        raise ExportError(
            f"TensorRT must not build {name}: {' '.join(str(finding) for finding in findings)}"
        )
