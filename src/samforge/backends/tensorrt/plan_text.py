"""What an engine of TensorRT for RTX computes, from the readable text in its plan.

The library's own inspector needs a GPU. The plan of 1.7 holds its compiled graph as text: this
reads it, undocumented as it is, and calls the result a best effort. A plan without such text gives
None, never zeros.
"""

from __future__ import annotations

import mmap
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from samforge.core.computation import Computation

SOURCE = "the readable text of the plan (best effort)"
"""Said wherever these counts are shown."""

_TENSOR = re.compile(rb'\n  (?:sub_)?tensor=\{[^\n]*? name="([^"\n]+)"[^\n]*? type=(\w+) \}')
_OPERATOR = re.compile(
    rb'\n  (fully_connected|corrltn|deconvolution)=\{ name="[^"]*" output=\{[^}]*\}'
    rb" input=\{([^}]*)\}"
)
_ATTENTION = re.compile(rb"\n  function=\{ name=_gem[mv]_mha_v\d+ ")
_NAMES = re.compile(rb'"([^"]+)"')

_FORMATS = {
    b"float": "fp32",
    b"half": "fp16",
    b"bfloat16": "bf16",
    b"bf16": "bf16",
    b"int8": "int8",
}


def computation_from_plan(plan: bytes | memoryview | mmap.mmap) -> Computation | None:
    """Count products, convolutions and fused attentions of an engine.

    Args:
        plan: The serialized engine.

    Returns:
        The counts, or None where it has no text of the known form.
    """
    types = {match[1]: match[2] for match in _TENSOR.finditer(plan)}
    products: Counter[str] = Counter()
    convolutions: Counter[str] = Counter()
    for match in _OPERATOR.finditer(plan):
        counts = products if match[1] == b"fully_connected" else convolutions
        counts[_format(types, match[2])] += 1
    attentions = sum(1 for _ in _ATTENTION.finditer(plan))
    if not types:
        return None
    return Computation(
        source=SOURCE,
        gemms=dict(sorted(products.items())),
        convolutions=dict(sorted(convolutions.items())),
        attentions=attentions,
    )


def computation_from_plan_file(path: Path) -> Computation | None:
    """Count them in an engine file, without reading it whole.

    Returns:
        The counts, or None where the file has no text of the known form.
    """
    if not path.stat().st_size:
        return None
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
        return computation_from_plan(plan)


def _format(types: Mapping[bytes, bytes], inputs: bytes) -> str:
    """Number format of an operator: that of its first input."""
    names = _NAMES.findall(inputs)
    found = types.get(names[0], b"") if names else b""
    if b"fp8" in found or b"e4m3" in found or b"f8" in found:
        return "fp8"
    return _FORMATS.get(found, found.decode() or "unknown")
