"""fp32 or Q/DQ graph -> the form of it that OpenVINO runs best.

Rotary encoding goes over halves of a head, for which OpenVINO has a kernel. Symmetric int8 Q/DQ it
reads as it is: as fast as with uint8 activations and a little more exact (2026.4). One operator it
takes back to float by a rule of its own that depends on sizes: the transposed convolution. So those
are float in the file already, and what is quantized does multiply integers.
"""

from __future__ import annotations

import onnx_ir as ir

from samforge.transform.onnx.convolution_sums import larger_first
from samforge.transform.onnx.graph import note, tidy
from samforge.transform.onnx.qdq import fold_weight_transposes, quantized_layers, restore
from samforge.transform.onnx.rotary_halves import rotary_by_halves

FLOAT_NOTE = "samforge.float"
"""Key in the file's notes: quantized layers that had to stay float, and why."""


def to_openvino(model: ir.Model) -> ir.Model:
    """Turn a graph into OpenVINO's flavour, in place.

    Args:
        model: fp32, with symmetric int8 Q/DQ or without.

    Returns:
        The same model; its notes name the layers that went back to float.
    """
    fold_weight_transposes(model)
    left = []
    for layer in quantized_layers(model):
        if layer.node.op_type == "ConvTranspose":
            restore(model, layer)
            left.append(f"{layer.path}: OpenVINO may compute transposed convolutions in float")
    rotary_by_halves(model)
    larger_first(model)
    tidy(model)
    if left:
        note(model, [(FLOAT_NOTE, "; ".join(left))])
    return model
