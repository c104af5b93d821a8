"""TensorRT for RTX: builds without a GPU, for the GPU generations that are named."""

from __future__ import annotations

from samforge.backends.tensorrt.backend import TensorRTBackend
from samforge.backends.tensorrt.library import RTX

BACKEND = TensorRTBackend(flavour=RTX)
