"""A backend without a runtime: right names, types and shapes, made-up numbers.

For tests of everything above sessions, and the smallest example of what a backend is.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samforge.core.devices import CPU, require_kind
from samforge.core.errors import DamagedBundle, ShapeError
from samforge.core.session import (
    Array,
    PartSpec,
    Session,
    Tensors,
    checked_options,
    checked_tensors,
    checked_threads,
)


@dataclass(slots=True)
class FakeSession:
    """Answers every call with numbers that depend on the inputs alone."""

    spec: PartSpec
    runtime: str = "fake"
    processor: str = "CPU"
    closed: bool = False

    def run(self, tensors: Tensors) -> dict[str, Array]:
        """Make outputs from a checksum of the inputs.

        Raises:
            ShapeError: A name, type or shape differs from the part's interface.
        """
        if self.closed:
            raise ShapeError(f"The session of {self.spec.name} is closed. Load it again.")
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
            tensor.name: _made_up(
                rng,
                tensor.dtype,
                [sizes[axis] if isinstance(axis, str) else axis for axis in tensor.shape],
            )
            for tensor in self.spec.outputs
        }

    def close(self) -> None:
        """Nothing to free, but no way back either."""
        self.closed = True


def _made_up(rng: np.random.Generator, dtype: str, shape: list[int]) -> Array:
    numbers = rng.standard_normal(shape)
    return numbers > 0 if dtype == "bool" else numbers.astype(dtype)


@dataclass(frozen=True, slots=True)
class FakeBackend:
    """Takes any file as its artifact."""

    name: str = "fake"

    def version(self) -> str | None:
        """Always usable."""
        return "1"

    def processors(self, runtime: Any) -> tuple[str, ...]:  # noqa: ARG002
        """This one."""
        return ("CPU",)

    def facts_from_artifact(self, path: Path) -> str | None:  # noqa: ARG002
        """Nothing in the file matters."""
        return None

    def session_from_artifact(
        self,
        path: Path,
        spec: PartSpec,
        *,
        threads: int | None = None,
        device: str | None = None,
        options: Mapping[str, str] | None = None,
    ) -> Session:
        """Make a session for the part; nothing in the file matters.

        Raises:
            DamagedBundle: There is no file.
            SettingError: An option is given: there is none.
        """
        checked_threads(threads)
        checked_options(self.name, options, {})
        require_kind(self.name, device, (CPU,))
        if not path.is_file():
            raise DamagedBundle(f"fake cannot load {path}: there is no such file.")
        return FakeSession(spec=spec)


BACKEND = FakeBackend()
