"""TensorRT: builds on the GPU that will run it, for the GPU that built it."""

from __future__ import annotations

from samforge.backends.tensorrt.backend import TensorRTBackend
from samforge.backends.tensorrt.library import TENSORRT

BACKEND = TensorRTBackend(flavour=TENSORRT)
