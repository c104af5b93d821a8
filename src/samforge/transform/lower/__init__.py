"""Exported program -> program in half or FP8 with the kernels a GPU runs fast."""

from samforge.transform.lower.program import Lowered, interface_dtype, lower
from samforge.transform.lower.scales import fp8_scales_from_samples
from samforge.transform.lower.settings import Lowering

__all__ = [
    "Lowered",
    "Lowering",
    "fp8_scales_from_samples",
    "interface_dtype",
    "lower",
]
