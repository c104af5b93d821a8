"""ONNX Runtime on the processor: numpy in, numpy out, no copies on the way."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import onnxruntime as ort

from samforge.core.errors import DamagedBundle, ShapeError
from samforge.core.session import (
    Array,
    PartSpec,
    Session,
    Tensors,
    TensorSpec,
    check_artifact,
    checked_tensors,
)

ELEMENT_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}
"""ONNX Runtime's name of an element type and numpy's."""


LARGE_INPUT = 2**20
"""Elements of one item of an input from which memory matters more than reuse."""


class OnnxRuntimeSession:
    """Runs one ``.onnx`` file."""

    runtime = "onnxruntime"

    def __init__(self, path: Path, spec: PartSpec, *, threads: int | None = None) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or 0
        if max(_elements(tensor) for tensor in spec.inputs) > LARGE_INPUT:
            # The arena grows by powers of two around attention scores of 1.6 GiB: vision at 1008
            # pixels peaks at 7.1 GiB with it and 4.6 without. Small parts are 10 % faster with it.
            options.enable_cpu_mem_arena = False
            options.enable_mem_pattern = False
        try:
            self._session: ort.InferenceSession | None = ort.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exception types are not public
            raise DamagedBundle(f"ONNX Runtime cannot load {path}: {error}") from error
        self.spec = spec
        self.processor = f"CPU, {threads or len(os.sched_getaffinity(0))} threads"
        check_artifact(
            path,
            spec,
            map(_tensor, self._session.get_inputs()),
            map(_tensor, self._session.get_outputs()),
        )

    def run(self, tensors: Tensors) -> dict[str, Array]:
        """Run the part once.

        Outputs are bound to fresh numpy memory and inputs are read in place, so nothing is copied
        unless an input is not contiguous.

        Raises:
            ShapeError: A name, type or shape differs from the part's interface.
        """
        session = self._session  # close() in another thread takes it away, and waits for nobody
        if session is None:
            raise ShapeError(f"The session of {self.spec.name} is closed. Load it again.")
        inputs = checked_tensors(self.spec, tensors)
        sizes: dict[int | str, int] = {}
        binding = session.io_binding()
        for tensor in self.spec.inputs:
            array = np.ascontiguousarray(inputs[tensor.name])
            inputs[tensor.name] = array  # alive until the run is over
            _bind(binding.bind_input, tensor, array)
            sizes.update(zip(tensor.shape, array.shape, strict=True))
        outputs: dict[str, Array] = {}
        for tensor in self.spec.outputs:
            shape = [sizes[axis] if isinstance(axis, str) else axis for axis in tensor.shape]
            outputs[tensor.name] = np.empty(shape, tensor.dtype)
            _bind(binding.bind_output, tensor, outputs[tensor.name])
        session.run_with_iobinding(binding)
        return outputs

    def close(self) -> None:
        """Free the weights."""
        self._session = None


def _elements(tensor: TensorSpec) -> int:
    return math.prod(axis for axis in tensor.shape if isinstance(axis, int))


def _bind(bind: object, tensor: TensorSpec, array: Array) -> None:
    bind(tensor.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)  # type: ignore[operator]


def _tensor(node: ort.NodeArg) -> TensorSpec:
    return TensorSpec(
        name=node.name,
        dtype=ELEMENT_TYPES.get(node.type, node.type),
        shape=tuple(axis if isinstance(axis, int) else str(axis) for axis in node.shape),
    )


@dataclass(frozen=True, slots=True)
class OnnxRuntimeBackend:
    """ONNX Runtime's CPU execution provider: the default, everywhere."""

    name: str = "onnxruntime"
    artifact: str = "onnx"
    extra: str | None = None

    def version(self) -> str | None:
        """Version of the installed package."""
        try:
            return version("onnxruntime")
        except PackageNotFoundError:
            return None

    def session_from_artifact(
        self, path: Path, spec: PartSpec, *, threads: int | None = None
    ) -> Session:
        """Load an ``.onnx`` file.

        Raises:
            DamagedBundle: The file does not load or is not the part the manifest says.
        """
        return OnnxRuntimeSession(path, spec, threads=threads)


BACKEND = OnnxRuntimeBackend()
