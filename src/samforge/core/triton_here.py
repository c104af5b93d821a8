"""Whether Triton's kernels can be had. Each has its meaning in plain torch beside it.

That runs on processors, and tests hold the kernel to it. Figures:
docs/developers/gpu-measurements.md.
"""

from __future__ import annotations

from importlib.util import find_spec

HAS_TRITON = find_spec("triton") is not None
