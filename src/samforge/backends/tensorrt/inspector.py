"""What an engine computes, from the library's engine inspector: needs a GPU.

Layers are told apart by their kernel (``TacticName``) and type (``LayerType``), never by names that
come from the graph: a product of ``/layer.0/attention/q_proj`` is no fused attention. The JSON
differs between versions: 10.x has ``Format/Datatype``, 11.x ``Format`` and ``Datatype`` (migration
guide of the inspector, 11.0). Layers as 10.x prints them: NVIDIA/TensorRT#4397, #4020.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from samforge.core.computation import Computation

SOURCE = "the engine inspector"

_ATTENTION = re.compile(r"_gem[mv]_mha|fmha|flash|\bmha\b|attention", re.IGNORECASE)
_CONVOLUTION = re.compile(r"conv|fprop|dgrad", re.IGNORECASE)
# "Fc" is a product inside a kernel that the compiler wrote itself: __myl_FcMulAdd_0x….
_PRODUCT = re.compile(
    r"(?i:gemm|matmul|matrixmultiply|matrix_multiply|fully_connected)|__myl_(?:[A-Z][a-z]+)*?Fc[A-Z_]"
)
_KERNEL = re.compile(r"(?:gemm|fprop|dgrad)(?:_[a-z]+)*?_(bf16|e4m3|e5m2|f16|f32|i8|tf32)")
"""Format of the first operand in a kernel's name: sm80_xmma_gemm_i8i8_i8i32_f32_tn_n_…."""
_KERNEL_FORMATS = {
    "bf16": "bf16",
    "e4m3": "fp8",
    "e5m2": "fp8",
    "f16": "fp16",
    "f32": "fp32",
    "i8": "int8",
    "tf32": "fp32",
}
_FORMATS = (
    (re.compile(r"fp8|e4m3", re.IGNORECASE), "fp8"),
    (re.compile(r"int8", re.IGNORECASE), "int8"),
    (re.compile(r"bf16|bfloat16", re.IGNORECASE), "bf16"),
    (re.compile(r"half|fp16|float16", re.IGNORECASE), "fp16"),
    (re.compile(r"float|fp32", re.IGNORECASE), "fp32"),
)


def computation_from_inspector(text: str) -> Computation | None:
    """Count products, convolutions and fused attentions.

    Args:
        text: ``get_engine_information`` in JSON of an engine built with detailed verbosity.

    Returns:
        The counts, or None where no product, convolution or attention is recognized: layers are
        names only, or of a form nobody has seen. Zeros would read as a loss.
    """
    layers = json.loads(text).get("Layers", [])
    detailed = [layer for layer in layers if isinstance(layer, dict)]
    products: Counter[str] = Counter()
    convolutions: Counter[str] = Counter()
    attentions = 0
    for layer in detailed:
        words = f"{layer.get('TacticName', '')} {layer.get('LayerType', '')}"
        if _ATTENTION.search(words):
            attentions += 1
        elif _CONVOLUTION.search(words):
            convolutions[_format(layer)] += 1
        elif _PRODUCT.search(words):
            products[_format(layer)] += 1
    if not (products or convolutions or attentions):
        return None
    return Computation(
        source=SOURCE,
        gemms=dict(sorted(products.items())),
        convolutions=dict(sorted(convolutions.items())),
        attentions=attentions,
    )


def _format(layer: Mapping[str, Any]) -> str:
    """Number format of a layer: that of its first input, or of its kernel where none is told.

    Dynamic shapes without an execution context leave ``N/A due to dynamic shapes``.
    """
    inputs = layer.get("Inputs") or [{}]
    first = inputs[0] if isinstance(inputs[0], dict) else {}
    for key in ("Format/Datatype", "Datatype", "DataType", "Format"):
        text = str(first.get(key, ""))
        for pattern, name in _FORMATS:
            if pattern.search(text):
                return name
    kernel = _KERNEL.search(str(layer.get("TacticName", "")))
    return _KERNEL_FORMATS[kernel[1]] if kernel else "unknown"
