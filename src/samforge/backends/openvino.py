"""OpenVINO on the processor: the same ONNX files, compiled for the cores at hand."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from samforge.backends._onnx_file import notes_from_onnx
from samforge.core.cpu_flags import SATURATING, products_saturate
from samforge.core.devices import CPU, require_kind
from samforge.core.errors import DamagedBundle, MissingExtra, SettingError, ShapeError
from samforge.core.facts import FACTS_KEY
from samforge.core.forks import OfOneProcess, keep_in_children
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

ELEMENT_TYPES = {
    "f32": "float32",
    "f16": "float16",
    "i64": "int64",
    "boolean": "bool",
}
"""OpenVINO's name of an element type and numpy's."""
ARITHMETIC = {"fp32": "f32", "bf16": "bf16", "int8": "f32", "int8-bf16": "bf16"}
"""Type of everything that is not quantized, by the option ``precision``. Quantized layers are in
the file; ``int8`` and ``fp32`` differ only in it."""
PRODUCTS = ("FullyConnected", "MatMul", "Convolution")
"""Operators of its runtime model that have 8-bit kernels."""
HINTS = {"latency": "LATENCY", "throughput": "THROUGHPUT"}
OPTIONS = {"precision": tuple(ARITHMETIC), "hint": tuple(HINTS), "cache": ()}
"""What a session takes: ``cache`` is a folder, made when it is not there, that keeps compiled
models for the next start."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimeLayer:
    """One layer as OpenVINO really runs it."""

    operator: str
    """``FullyConnected``, ``MatMul``, ``Convolution``, …"""
    precision: str
    """``f32``, ``bf16``, ``i8``, ``u8``, …"""
    kernel: str
    """Implementation, for example ``brgemm_avx512_i8``."""
    names: tuple[str, ...]
    """Outputs of the graph's nodes that became this layer."""


class OpenVinoSession(OfOneProcess):
    """Runs one ``.onnx`` file."""

    runtime = "openvino"

    def __init__(
        self,
        path: Path,
        spec: PartSpec,
        *,
        threads: int | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        core = _core()
        settings = _settings(threads, options or {})
        try:
            model = core.read_model(path)
        except Exception as error:  # its exception types say nothing
            raise DamagedBundle(f"OpenVINO cannot load {path}: {error}") from error
        check_artifact(path, spec, map(_tensor, model.inputs), map(_tensor, model.outputs))
        try:
            self._compiled: Any = core.compile_model(model, "CPU", settings)
        except Exception as error:
            raise DamagedBundle(f"OpenVINO cannot load {path}: {error}") from error
        self._names = {name: port for port in self._compiled.outputs for name in port.names}
        self._requests: list[Any] = []
        self._lock = threading.Lock()
        self.spec = spec
        self.processor = f"CPU, {threads or len(os.sched_getaffinity(0))} threads"
        if products_saturate() and any(map(_multiplies_integers, self.layers())):
            self.processor += f" ({SATURATING})"
        self.hold()

    def run(self, tensors: Tensors) -> dict[str, Array]:
        """Run the part once.

        Raises:
            ShapeError: A name, type or shape differs from the part's interface.
        """
        self.require_own(f"The session of {self.spec.name}")
        compiled = self._compiled  # close() in another thread takes it away
        if compiled is None:
            raise ShapeError(f"The session of {self.spec.name} is closed. Load it again.")
        inputs = {
            name: np.ascontiguousarray(array)
            for name, array in checked_tensors(self.spec, tensors).items()
        }
        request = self._request(compiled)
        try:
            # share_inputs reads the arrays in place; results are copied out of the request, which
            # the next call overwrites.
            found = request.infer(inputs, share_inputs=True, share_outputs=True)
            return {
                tensor.name: np.array(found[self._names[tensor.name]], order="C")
                for tensor in self.spec.outputs
            }
        finally:
            with self._lock:
                if self._compiled is not None:
                    self._requests.append(request)

    def layers(self) -> tuple[RuntimeLayer, ...]:
        """What the compiled model consists of, from OpenVINO's own runtime model."""
        found = []
        for node in self._compiled.get_runtime_model().get_ops():
            notes = {key: value.astype(str) for key, value in node.get_rt_info().items()}
            found.append(
                RuntimeLayer(
                    operator=notes.get("layerType", "?"),
                    precision=notes.get("runtimePrecision", "?"),
                    kernel=notes.get("primitiveType", "?"),
                    names=tuple(filter(None, notes.get("originalLayersNames", "").split(","))),
                )
            )
        return tuple(found)

    def close(self) -> None:
        """Free the weights; after a fork, nothing."""
        if self.is_inherited:
            return
        with self._lock:
            self._compiled = None
            self._requests.clear()

    def _request(self, compiled: Any) -> Any:
        """A request that nobody uses: one belongs to one call at a time."""
        with self._lock:
            if self._requests:
                return self._requests.pop()
        return compiled.create_infer_request()


def _multiplies_integers(layer: RuntimeLayer) -> bool:
    return layer.operator in PRODUCTS and layer.precision in ("i8", "u8")


def has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 in hardware.

    Raises:
        MissingExtra: OpenVINO is not installed.
    """
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _core() -> Any:
    """The one ``Core`` of this process.

    Raises:
        MissingExtra: OpenVINO is not installed.
    """
    try:
        openvino = import_runtime("openvino")
    except ImportError as error:
        raise MissingExtra("OpenVINO", "openvino") from error
    return _once(os.getpid(), openvino.Core)


@lru_cache(maxsize=1)
def _once(_process: int, make: Callable[[], Any]) -> Any:
    """Make something that lives as long as the process; its forks make their own.

    Each Core's CPU plugin gives the thread that loads it another stack for signal handlers, and
    when it is destroyed puts back the one it found (openvinotoolkit/openvino#11894). Of two of
    them, the second puts back what the first has unmapped: the next signal, Ctrl-C among them, then
    kills the process (2026.4).
    """
    made = make()
    keep_in_children(made)
    return made


def _settings(threads: int | None, options: Mapping[str, str]) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": ARITHMETIC[options.get("precision", "fp32")],
        "PERFORMANCE_HINT": HINTS[options.get("hint", "latency")],
        # Pinned threads of two sessions, or of two processes, end up on the same cores.
        "ENABLE_CPU_PINNING": False,
    }
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    if "cache" in options:
        folder = Path(options["cache"])
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingError(
                f"OpenVINO's cache {folder} cannot be made: {error.strerror}. "
                "Choose a folder that can be written, or leave the option out."
            ) from error
        settings["CACHE_DIR"] = str(folder)
    return settings


def _tensor(port: Any) -> TensorSpec:
    kind = port.get_element_type().get_type_name()
    return TensorSpec(
        name=port.get_any_name(),
        dtype=ELEMENT_TYPES.get(kind, kind),
        shape=tuple(
            axis.get_length() if axis.is_static else str(axis) for axis in port.get_partial_shape()
        ),
    )


@dataclass(frozen=True, slots=True)
class OpenVinoBackend:
    """OpenVINO's CPU plugin: fastest on x86 processors."""

    name: str = "openvino"

    def version(self) -> str | None:
        """Version of the installed package, or None."""
        try:
            return version("openvino")
        except PackageNotFoundError:
            return None

    def processors(self, runtime: Any) -> tuple[str, ...]:
        """Its devices by their full names."""
        core = runtime.Core()
        devices = core.available_devices
        return tuple(core.get_property(device, "FULL_DEVICE_NAME") for device in devices)

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
        """Load and compile an ``.onnx`` file.

        Args:
            path: The file.
            spec: Interface that it must have.
            threads: Processor threads, or None for all that this process may use.
            device: ``cpu`` or None.
            options: ``precision`` (fp32, bf16, int8, int8-bf16), ``hint`` (latency, throughput) and
                ``cache`` (a folder for compiled models).

        Raises:
            MissingExtra: OpenVINO is not installed.
            DamagedBundle: The file does not load or is not the part the manifest says.
            SettingError: An option is unknown, the cache cannot be made, or ``device`` is a GPU.
        """
        checked_threads(threads)
        require_kind(self.name, device, (CPU,))
        options = checked_options(self.name, options, OPTIONS)
        return OpenVinoSession(path, spec, threads=threads, options=options)


BACKEND = OpenVinoBackend()
