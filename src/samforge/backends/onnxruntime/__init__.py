"""ONNX Runtime: on the processor (``cpu``) and on NVIDIA GPUs (``cuda``), over one ``session``."""

from samforge.backends.onnxruntime.cpu import BACKEND, OnnxRuntimeSession, optimized_from_onnx
from samforge.backends.onnxruntime.session import DISABLED_NOTE, INTEGER_NOTE, UNOPTIMIZED_NOTE

__all__ = [
    "BACKEND",
    "DISABLED_NOTE",
    "INTEGER_NOTE",
    "UNOPTIMIZED_NOTE",
    "OnnxRuntimeSession",
    "optimized_from_onnx",
]
