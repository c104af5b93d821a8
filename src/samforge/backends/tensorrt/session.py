"""Runs one engine."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from samforge.backends.tensorrt.cuda import gpu_here
from samforge.backends.tensorrt.device_array import DeviceArray
from samforge.backends.tensorrt.inspector import computation_from_inspector
from samforge.backends.tensorrt.library import Flavour, installed_version, library
from samforge.backends.tensorrt.loading import (
    axes_of,
    check_file,
    check_gpu,
    check_version,
    deserialized,
    tensors_of,
)
from samforge.backends.tensorrt.shapes import check_sizes
from samforge.backends.tensorrt.stamp import read_stamp
from samforge.backends.tensorrt.worker import Worker, sizes_of
from samforge.core.computation import Computation
from samforge.core.errors import MissingExtra, ShapeError
from samforge.core.forks import OfOneProcess
from samforge.core.session import (
    Array,
    PartSpec,
    TensorFormat,
    Tensors,
    check_artifact,
    checked_tensors,
)


class EngineSession(OfOneProcess):
    """Runs one engine; several threads may call it, each gets a context of its own."""

    def __init__(self, flavour: Flavour, path: Path, spec: PartSpec, *, gpu_index: int = 0) -> None:
        stamp = read_stamp(path)
        check_file(flavour, path, stamp)
        installed = installed_version(flavour)
        if installed is None:
            raise MissingExtra(flavour.title, flavour.name)
        check_version(path, stamp, flavour, installed)
        gpu = check_gpu(path, stamp, flavour, gpu_here(gpu_index))
        self._lib = library(flavour)
        self._runtime, self._engine = deserialized(self._lib, path)
        check_artifact(
            path, spec, tensors_of(self._engine, "INPUT"), tensors_of(self._engine, "OUTPUT")
        )
        self.spec = spec
        self.runtime = flavour.name
        self.processor = f"{gpu.name} (cuda:{gpu.index})"
        self.device = f"cuda:{gpu.index}"
        # Buffers are the context's own, on its own stream: a caller's graph cannot hold its call.
        self.captures = False
        self.formats = {tensor.name: TensorFormat(dtype=tensor.dtype) for tensor in spec.inputs}
        self._axes = axes_of(self._engine, spec)
        self.largest = {name: axis.max for name, axis in self._axes.items()}
        self._gpu = gpu.index
        self._idle: list[Worker] = []
        self._lock = threading.Lock()
        self._closed = False
        self.hold()

    def run(self, tensors: Tensors) -> dict[str, Array]:
        """Run the part once on arrays of the host.

        Raises:
            ShapeError: A name, type or shape differs from the part's interface, or the engine was
                built for other sizes.
        """
        self._check_open()
        inputs = checked_tensors(self.spec, tensors)
        sizes = sizes_of(self.spec, {name: array.shape for name, array in inputs.items()})
        check_sizes(self.spec, self._axes, sizes)
        with self._worker() as worker:
            return worker.run(inputs, sizes)

    def run_on_device(self, tensors: Mapping[str, Any]) -> dict[str, DeviceArray]:
        """Run the part once on tensors of the GPU; nothing passes through the host.

        Args:
            tensors: One for every input, from any library that speaks DLPack (torch, CuPy, JAX),
                or what another session's ``run_on_device`` gave.

        Returns:
            New arrays on the GPU; ``torch.as_tensor(array, device="cuda")`` shares their memory.

        Raises:
            ShapeError: A name, type or shape differs from the part's interface, a tensor lies
                elsewhere or is not packed, or the engine was built for other sizes.
        """
        self._check_open()
        _check_tensors(self.spec, tensors)
        sizes = sizes_of(self.spec, {name: tuple(t.shape) for name, t in tensors.items()})
        check_sizes(self.spec, self._axes, sizes)
        with self._worker() as worker:
            return worker.run_on_device(tensors)

    def computation(self) -> Computation | None:
        """What the engine computes in which format, from the library's inspector.

        Formats of layers with dynamic shapes are known once the session has run.

        Returns:
            The counts, or None where the inspector tells names only.
        """
        self._check_open()
        inspector = self._engine.create_engine_inspector()
        json_format = self._lib.trt.LayerInformationFormat.JSON
        with self._worker() as worker:
            inspector.execution_context = worker.context
            text = inspector.get_engine_information(json_format)
        return computation_from_inspector(text)

    def close(self) -> None:
        """Free the weights; calls that still run in other threads finish first.

        After a fork it frees nothing: the GPU's context belongs to the parent.
        """
        if self.is_inherited:
            return
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.close()
        self._engine = self._runtime = None

    def _check_open(self) -> None:
        self.require_own(f"The session of {self.spec.name}")
        if self._closed:
            raise ShapeError(f"The session of {self.spec.name} is closed. Load it again.")

    @contextmanager
    def _worker(self) -> Iterator[Worker]:
        """A context that no other thread uses; one is made where all are busy."""
        with self._lock:
            engine = self._engine  # a context keeps its engine alive
            worker = self._idle.pop() if self._idle else None
        if worker is None:
            if engine is None:
                raise ShapeError(f"The session of {self.spec.name} is closed. Load it again.")
            worker = Worker(self._lib, engine, self.spec, self._axes, self._gpu)
        try:
            yield worker
        finally:
            with self._lock:
                keep = not self._closed
                if keep:
                    self._idle.append(worker)
            if not keep:
                worker.close()


def _check_tensors(spec: PartSpec, tensors: Mapping[str, Any]) -> None:
    """Names, ranks, fixed axes and types of tensors on the GPU, before anything is copied."""
    expected = {tensor.name for tensor in spec.inputs}
    if set(tensors) != expected:
        raise ShapeError(f"{spec.name} wants the inputs {sorted(expected)}, got {sorted(tensors)}.")
    sizes: dict[str, int] = {}
    for tensor in spec.inputs:
        given = tensors[tensor.name]
        dtype = str(given.dtype).removeprefix("torch.")
        shape = tuple(int(axis) for axis in given.shape)
        fits = len(shape) == len(tensor.shape) and all(
            axis >= 1 and axis == (sizes.setdefault(want, axis) if isinstance(want, str) else want)
            for axis, want in zip(shape, tensor.shape, strict=False)
        )
        if dtype != tensor.dtype or not fits:
            raise ShapeError(f"{spec.name} wants {tensor}, got {dtype} {shape}.")
