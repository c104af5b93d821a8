"""fp32 graph -> the form of it that ONNX Runtime's CUDA provider runs best, in fp32 or in half."""

from __future__ import annotations

import onnx_ir as ir

from samforge.core.errors import SettingError
from samforge.transform.onnx.cuda_attention import fuse_cuda_attention
from samforge.transform.onnx.cuda_blocks import fuse_bias_gelu, fuse_skip_norm
from samforge.transform.onnx.graph import array_of, note
from samforge.transform.onnx.half import cast_half
from samforge.transform.onnx.precision_plan import CUDA

PRECISIONS = ("fp32", "fp16")
"""Number formats of this form. Its CUDA provider has no 8-bit products for graphs with Q/DQ: it
computes them in float between conversions."""
SIZES_NOTE = "samforge.sizes"
"""Read by ``samforge.backends.onnxruntime.placement``."""


def to_cuda(model: ir.Model, precision: str) -> ir.Model:
    """Turn a graph into the flavour of ONNX Runtime on CUDA, in place.

    Args:
        model: fp32, from :func:`samforge.transform.onnx.convert.onnx_from_exported`.
        precision: One of ``PRECISIONS``.

    Returns:
        The same model; its notes name the nodes that compute sizes, which alone may run on the
        processor.

    Raises:
        SettingError: There is no such precision in this form.
    """
    if precision not in PRECISIONS:
        raise SettingError(
            f"ONNX Runtime on CUDA is built for in {', '.join(PRECISIONS)}, not in {precision}."
        )
    fuse_cuda_attention(model)
    fuse_bias_gelu(model)
    fuse_skip_norm(model)
    if precision == "fp16":
        cast_half(model, CUDA)
    note_sizes(model)
    return model


def note_sizes(model: ir.Model) -> None:
    """Write down which nodes compute sizes from shapes, and nothing else."""
    sizes: dict[ir.Node, str] = {}
    for index, node in enumerate(model.graph):
        computed = [value for value in node.inputs if value and array_of(value) is None]
        of_sizes = bool(computed) and all(value.producer() in sizes for value in computed)
        whole = all(value.dtype == ir.DataType.INT64 for value in node.outputs)
        if node.op_type in {"Shape", "Size"} or (of_sizes and whole):
            node.name = node.name or f"size_{index}"
            sizes[node] = node.name
    note(model, [(SIZES_NOTE, ",".join(sizes.values()))])
