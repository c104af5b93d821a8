"""Q/DQ -> the Q/DQ that OpenVINO multiplies in integers without exception.

OpenVINO reads symmetric int8 Q/DQ as it is: as fast as with uint8 activations and a little more
exact (2026.4). One operator it takes back to float by a rule of its own that depends on sizes: the
transposed convolution. So those are float in the file already.
"""

from __future__ import annotations

import onnx_ir as ir

from samforge.transform.onnx.graph import note, tidy
from samforge.transform.onnx.qdq import fold_weight_transposes, quantized_layers, restore

FLOAT_NOTE = "samforge.float"
"""Key in the file's notes: quantized layers that had to stay float, and why."""


def to_openvino(model: ir.Model) -> ir.Model:
    """Turn a symmetric int8 graph into OpenVINO's flavour, in place.

    Returns:
        The same model; its notes name the layers that went back to float.
    """
    fold_weight_transposes(model)
    left = []
    for layer in quantized_layers(model):
        if layer.node.op_type == "ConvTranspose":
            restore(model, layer)
            left.append(f"{layer.path}: OpenVINO computes transposed convolutions of its size so")
    tidy(model)
    note(model, [(FLOAT_NOTE, "; ".join(left))])
    return model
