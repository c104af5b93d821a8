"""What an engine computes, from the library's engine inspector: needs a GPU.

Layers are told apart by the names of their kernels (``TacticName``) and by their type. The JSON
differs between versions: 10.x has ``Format/Datatype``, 11.x splits it (migration guide of the
inspector, 11.0).
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
_CONVOLUTION = re.compile(r"conv", re.IGNORECASE)
_PRODUCT = re.compile(r"gemm|matmul|matrixmultiply|matrix_multiply|fully_connected", re.IGNORECASE)
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
        The counts, or None where the layers are names only.
    """
    layers = json.loads(text).get("Layers", [])
    detailed = [layer for layer in layers if isinstance(layer, dict)]
    if not detailed:
        return None
    products: Counter[str] = Counter()
    convolutions: Counter[str] = Counter()
    attentions = 0
    for layer in detailed:
        words = f"{layer.get('TacticName', '')} {layer.get('LayerType', '')}"
        name = str(layer.get("Name", ""))
        if _ATTENTION.search(words) or _ATTENTION.search(name.partition("+")[0]):
            attentions += 1
        elif _CONVOLUTION.search(words):
            convolutions[_format(layer)] += 1
        elif _PRODUCT.search(words):
            products[_format(layer)] += 1
    return Computation(
        source=SOURCE,
        gemms=dict(sorted(products.items())),
        convolutions=dict(sorted(convolutions.items())),
        attentions=attentions,
    )


def _format(layer: Mapping[str, Any]) -> str:
    inputs = layer.get("Inputs") or [{}]
    first = inputs[0] if isinstance(inputs[0], dict) else {}
    # 10.x: "Format/Datatype"; 11.x: "DataType" beside "Format".
    text = str(first.get("Format/Datatype") or first.get("DataType") or first.get("Datatype") or "")
    return next((name for pattern, name in _FORMATS if pattern.search(text)), "unknown")
