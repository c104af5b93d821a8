"""Exported program -> exported program with quantize and dequantize where 8 bits are enough."""

from samforge.transform.quantize.calibration import Calibrated, CalibrationWarning, calibrate
from samforge.transform.quantize.e4m3 import e4m3_program
from samforge.transform.quantize.emit import (
    Programs,
    evened_weights,
    program_from_calibrated,
    smoothed_program,
)
from samforge.transform.quantize.placement import LeftFloat
from samforge.transform.quantize.quantized import (
    Quantized,
    StaticScales,
    quantize,
    quantized_from_calibrated,
)
from samforge.transform.quantize.report import (
    QuantizedLayer,
    QuantizeReport,
    SmoothedPair,
    check_ranges,
)
from samforge.transform.quantize.sensitivity import (
    GroupDamage,
    LayerFidelity,
    choose_kept,
    layer_fidelity,
    sensitivity,
)
from samforge.transform.quantize.skips import LayerNames, check_skips, names_from_program

__all__ = [
    "Calibrated",
    "CalibrationWarning",
    "GroupDamage",
    "LayerFidelity",
    "LayerNames",
    "LeftFloat",
    "Programs",
    "QuantizeReport",
    "Quantized",
    "QuantizedLayer",
    "SmoothedPair",
    "StaticScales",
    "calibrate",
    "check_ranges",
    "check_skips",
    "choose_kept",
    "e4m3_program",
    "evened_weights",
    "layer_fidelity",
    "names_from_program",
    "program_from_calibrated",
    "quantize",
    "quantized_from_calibrated",
    "sensitivity",
    "smoothed_program",
]
