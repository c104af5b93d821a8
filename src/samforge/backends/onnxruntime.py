"""ONNX Runtime on the processor: numpy in, numpy out, no copies on the way."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from samforge.backends._onnx_file import notes_from_onnx
from samforge.core.cpu_flags import CPU_INFO, cpu_flags
from samforge.core.devices import CPU, require_kind
from samforge.core.errors import DamagedBundle, ShapeError
from samforge.core.facts import FACTS_KEY
from samforge.core.forks import OfOneProcess
from samforge.core.session import (
    Array,
    PartSpec,
    Session,
    Tensors,
    TensorSpec,
    check_artifact,
    checked_options,
    checked_tensors,
    checked_threads,
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


LARGE_INPUT = 2**20
"""Elements of one item of an input from which memory matters more than reuse."""

DISABLED_NOTE = "samforge.onnxruntime.disabled"
"""Key in the file's notes: optimizers of ONNX Runtime that undo its flavour, with commas."""
INTEGER_NOTE = "samforge.integer"
"""Key in the file's notes: how many layers multiply integers."""
UNOPTIMIZED_NOTE = "samforge.onnxruntime.unoptimized"
"""Key in the file's notes: why the graph runs as it stands, operator by operator."""


class OnnxRuntimeSession(OfOneProcess):
    """Runs one ``.onnx`` file."""

    runtime = "onnxruntime"

    def __init__(self, path: Path, spec: PartSpec, *, threads: int | None = None) -> None:
        notes = notes_from_onnx(path)
        options = _options(notes)
        options.intra_op_num_threads = threads or 0
        if max(_elements(tensor) for tensor in spec.inputs) > LARGE_INPUT:
            # The arena grows by powers of two around attention scores of 1.6 GiB: vision at 1008
            # pixels peaks at 7.1 GiB with it and 4.6 without. Small parts are 10 % faster with it.
            options.enable_cpu_mem_arena = False
            options.enable_mem_pattern = False
        try:
            self._session: Any = ort.InferenceSession(
                str(path),
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=_disabled(notes),
            )
        except Exception as error:  # its exception types are not public
            raise DamagedBundle(f"ONNX Runtime cannot load {path}: {error}") from error
        self.spec = spec
        self.processor = f"CPU, {threads or len(os.sched_getaffinity(0))} threads"
        for reason in _reasons(notes):
            self.processor += f" ({reason})"
        check_artifact(
            path,
            spec,
            map(_tensor, self._session.get_inputs()),
            map(_tensor, self._session.get_outputs()),
        )
        self.hold()

    def run(self, tensors: Tensors) -> dict[str, Array]:
        """Run the part once.

        Outputs are bound to fresh numpy memory and inputs are read in place, so nothing is copied
        unless an input is not contiguous.

        Raises:
            ShapeError: A name, type or shape differs from the part's interface.
        """
        self.require_own(f"The session of {self.spec.name}")
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
        """Free the weights; after a fork, nothing."""
        if not self.is_inherited:
            self._session = None


def optimized_from_onnx(path: Path, out: Path) -> None:
    """Write the graph that ONNX Runtime really runs, with the settings a session would take.

    Weights above 1 MiB go to a file beside it. To compare it with what was intended.

    Args:
        path: The ``.onnx`` file.
        out: File to write.

    Raises:
        DamagedBundle: The file does not load.
    """
    notes = notes_from_onnx(path)
    options = _options(notes)
    options.optimized_model_filepath = str(out)
    options.log_severity_level = 3  # writing an optimized graph warns that it fits this machine
    side = "session.optimized_model_external_initializers_"
    options.add_session_config_entry(f"{side}file_name", f"{out.name}.data")
    options.add_session_config_entry(f"{side}min_size_in_bytes", str(2**20))
    # Kernels' own layouts of the weights would double what is written, and are not looked at.
    options.add_session_config_entry("session.disable_prepacking", "1")
    try:
        ort.InferenceSession(
            str(path),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=_disabled(notes),
        )
    except Exception as error:  # its exception types are not public
        raise DamagedBundle(f"ONNX Runtime cannot load {path}: {error}") from error


def _options(notes: Mapping[str, str]) -> Any:
    """Settings that a file asks for in its notes."""
    options = ort.SessionOptions()
    # A bundle has several sessions, each with threads of its own. After a run they would go on
    # spinning, on the processors that the next session wants. Within a run they spin as before.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if UNOPTIMIZED_NOTE in notes:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def _reasons(notes: Mapping[str, str]) -> list[str]:
    """What one should know about this file on this processor."""
    found = [notes[UNOPTIMIZED_NOTE]] if UNOPTIMIZED_NOTE in notes else []
    if int(notes.get(INTEGER_NOTE, "0")) and saturates():
        found.append("without VNNI instructions its 8-bit products may saturate")
    return found


def saturates(cpuinfo: Path = CPU_INFO) -> bool:
    """Whether the processor adds pairs of 8-bit products in 16 bits, which may not hold them.

    x86 before VNNI does (``vpmaddubsw``); what is no x86, or cannot be read, is taken not to.
    """
    flags = cpu_flags(cpuinfo)
    return "avx2" in flags and not {"avx512_vnni", "avx_vnni"} & flags


def _disabled(notes: Mapping[str, str]) -> list[str]:
    return [name for name in notes.get(DISABLED_NOTE, "").split(",") if name]


def _elements(tensor: TensorSpec) -> int:
    return math.prod(axis for axis in tensor.shape if isinstance(axis, int))


def _bind(bind: object, tensor: TensorSpec, array: Array) -> None:
    bind(tensor.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)  # type: ignore[operator]


def _tensor(node: Any) -> TensorSpec:
    return TensorSpec(
        name=node.name,
        dtype=ELEMENT_TYPES.get(node.type, node.type),
        shape=tuple(axis if isinstance(axis, int) else str(axis) for axis in node.shape),
    )


@dataclass(frozen=True, slots=True)
class OnnxRuntimeBackend:
    """ONNX Runtime's CPU execution provider: the default, everywhere."""

    name: str = "onnxruntime"

    def version(self) -> str | None:
        """Version of the installed package."""
        try:
            return version("onnxruntime")
        except PackageNotFoundError:
            return None

    def processors(self, runtime: Any) -> tuple[str, ...]:
        """Its execution providers."""
        return tuple(runtime.get_available_providers())

    def facts_from_artifact(self, path: Path) -> str | None:
        """The stamp among the file's ``metadata_props``."""
        return notes_from_onnx(path).get(FACTS_KEY)

    def session_from_artifact(
        self,
        path: Path,
        spec: PartSpec,
        *,
        threads: int | None = None,
        device: str | None = None,
        options: Mapping[str, str] | None = None,
    ) -> Session:
        """Load an ``.onnx`` file; what its flavour needs stands in the file.

        Raises:
            DamagedBundle: The file does not load or is not the part the manifest says.
            SettingError: An option is given: there is none. Or ``device`` is a GPU.
        """
        checked_threads(threads)
        checked_options(self.name, options, {})
        require_kind(self.name, device, (CPU,))
        return OnnxRuntimeSession(path, spec, threads=threads)


BACKEND = OnnxRuntimeBackend()
