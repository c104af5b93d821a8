"""What sessions of ONNX Runtime share, wherever they run: loading, checks, binding of tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from samforge.core.errors import DamagedBundle, ShapeError
from samforge.core.forks import OfOneProcess
from samforge.core.session import (
    Array,
    PartSpec,
    Tensors,
    TensorSpec,
    check_artifact,
    checked_tensors,
)
from samforge.core.telemetry import import_runtime

ort: Any = import_runtime("onnxruntime")

ELEMENT_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}
"""ONNX Runtime's name of an element type and numpy's."""

DISABLED_NOTE = "samforge.onnxruntime.disabled"
"""Key in the file's notes: optimizers of ONNX Runtime that undo its flavour, with commas."""
INTEGER_NOTE = "samforge.integer"
"""Key in the file's notes: how many layers multiply integers."""
UNOPTIMIZED_NOTE = "samforge.onnxruntime.unoptimized"
"""Key in the file's notes: why the graph runs as it stands, operator by operator."""


class BoundSession(OfOneProcess):
    """Runs one ``.onnx`` file on bound memory; subclasses say on which providers."""

    runtime: str

    def __init__(
        self, path: Path, spec: PartSpec, options: Any, providers: Sequence[Any], notes: Notes
    ) -> None:
        self.spec = spec
        self._session: Any = loaded(path, options, providers, notes)
        check_artifact(
            path,
            spec,
            map(tensor_of, self._session.get_inputs()),
            map(tensor_of, self._session.get_outputs()),
        )

    def run(self, tensors: Tensors) -> dict[str, Array]:
        """Run the part once on arrays of the host.

        Outputs are bound to fresh numpy memory and inputs are read in place, so the host copies
        nothing unless an input is not contiguous.

        Raises:
            ShapeError: A name, type or shape differs from the part's interface.
        """
        session = self.require_open()  # close() in another thread takes it away
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
        self._run_bound(session, binding)
        return outputs

    def close(self) -> None:
        """Free the weights; after a fork, nothing."""
        if not self.is_inherited:
            self._session = None

    def require_open(self) -> Any:
        """The runtime's session.

        Raises:
            ShapeError: It is closed.
            ForkedSession: It belongs to another process.
        """
        self.require_own(f"The session of {self.spec.name}")
        session = self._session
        if session is None:
            raise ShapeError(f"The session of {self.spec.name} is closed. Load it again.")
        return session

    def _run_bound(self, session: Any, binding: Any) -> None:
        """Run; results are there when it returns."""
        session.run_with_iobinding(binding)


Notes = Mapping[str, str]
"""What a file says of itself; see ``samforge.backends._onnx_file``."""


def loaded(path: Path, options: Any, providers: Sequence[Any], notes: Notes) -> Any:
    """Load a file.

    Args:
        path: The ``.onnx`` file.
        options: ``SessionOptions``, from :func:`session_options`.
        providers: Where it may run, the best first, as ONNX Runtime takes them.
        notes: Of the file.

    Raises:
        DamagedBundle: It does not load.
    """
    try:
        return ort.InferenceSession(
            str(path), options, providers=list(providers), disabled_optimizers=_disabled(notes)
        )
    except Exception as error:  # its exception types are not public
        raise DamagedBundle(f"ONNX Runtime cannot load {path}: {error}") from error


def session_options(notes: Notes) -> Any:
    """Settings that a file asks for in its notes."""
    options = ort.SessionOptions()
    options.log_severity_level = 3  # it warns of what it optimizes away
    # A bundle has several sessions, each with threads of its own. After a run they would go on
    # spinning, on the processors that the next session wants. Within a run they spin as before.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if UNOPTIMIZED_NOTE in notes:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def installed_version(*distributions: str) -> str | None:
    """Version of the first of some packages that is installed, or None."""
    for distribution in distributions:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return None


def elements(tensor: TensorSpec) -> int:
    """Numbers in one item of a tensor."""
    return math.prod(axis for axis in tensor.shape if isinstance(axis, int))


def tensor_of(node: Any) -> TensorSpec:
    """An input or output as ONNX Runtime tells it."""
    return TensorSpec(
        name=node.name,
        dtype=ELEMENT_TYPES.get(node.type, node.type),
        shape=tuple(axis if isinstance(axis, int) else str(axis) for axis in node.shape),
    )


def _disabled(notes: Notes) -> list[str]:
    return [name for name in notes.get(DISABLED_NOTE, "").split(",") if name]


def _bind(bind: object, tensor: TensorSpec, array: Array) -> None:
    bind(tensor.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)  # type: ignore[operator]
