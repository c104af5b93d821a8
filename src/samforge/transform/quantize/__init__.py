"""Exported program -> exported program with quantize and dequantize where 8 bits are enough."""

from samforge.transform.quantize.calibration import Calibrated, CalibrationWarning, calibrate
from samforge.transform.quantize.e4m3 import e4m3_program
from samforge.transform.quantize.emit import program_from_calibrated, smoothed_program
from samforge.transform.quantize.patterns import check_patterns
from samforge.transform.quantize.placement import LeftFloat, paths_from_graph
from samforge.transform.quantize.quantized import (
    Quantized,
    StaticScales,
    quantize,
    quantized_from_calibrated,
)
from samforge.transform.quantize.report import QuantizedLayer, QuantizeReport, SmoothedNorm
from samforge.transform.quantize.sensitivity import (
    GroupDamage,
    LayerFidelity,
    choose_kept,
    layer_fidelity,
    sensitivity,
)

__all__ = [
    "Calibrated",
    "CalibrationWarning",
    "GroupDamage",
    "LayerFidelity",
    "LeftFloat",
    "QuantizeReport",
    "Quantized",
    "QuantizedLayer",
    "SmoothedNorm",
    "StaticScales",
    "calibrate",
    "check_patterns",
    "choose_kept",
    "e4m3_program",
    "layer_fidelity",
    "paths_from_graph",
    "program_from_calibrated",
    "quantize",
    "quantized_from_calibrated",
    "sensitivity",
    "smoothed_program",
]
