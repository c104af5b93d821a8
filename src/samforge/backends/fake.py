"""A backend without a runtime: right names, types and shapes, made-up numbers.

For tests of everything above sessions, and the smallest example of what a backend is.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from samforge.core.session import Array, PartSpec, Session, Tensors, checked_tensors


@dataclass(slots=True)
class FakeSession:
    """Answers every call with numbers that depend on the inputs alone."""

    spec: PartSpec
    runtime: str = "fake"
    processor: str = "CPU"

    def run(self, tensors: Tensors) -> dict[str, Array]:
        """Make outputs from a checksum of the inputs."""
        inputs = checked_tensors(self.spec, tensors)
        sizes = {
            axis: size
            for tensor in self.spec.inputs
            for axis, size in zip(tensor.shape, inputs[tensor.name].shape, strict=True)
            if isinstance(axis, str)
        }
        seed = 0
        for name in sorted(inputs):
            seed = zlib.crc32(np.ascontiguousarray(inputs[name]).tobytes(), seed)
        rng = np.random.default_rng(seed)
        return {
            tensor.name: rng.standard_normal(
                [sizes[axis] if isinstance(axis, str) else axis for axis in tensor.shape]
            ).astype(tensor.dtype)
            for tensor in self.spec.outputs
        }

    def close(self) -> None:
        """Nothing to free."""


@dataclass(frozen=True, slots=True)
class FakeBackend:
    """Takes any file as its artifact."""

    name: str = "fake"
    artifact: str = "onnx"
    extra: str | None = None

    def version(self) -> str | None:
        """Always usable."""
        return "1"

    def session_from_artifact(
        self,
        path: Path,  # noqa: ARG002  # nothing in the file matters
        spec: PartSpec,
        *,
        threads: int | None = None,  # noqa: ARG002
    ) -> Session:
        """Make a session for the part."""
        return FakeSession(spec=spec)


BACKEND = FakeBackend()
