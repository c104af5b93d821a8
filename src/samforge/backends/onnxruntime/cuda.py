"""ONNX Runtime on an NVIDIA GPU: its CUDA execution provider, and nothing on the processor."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samforge.backends._onnx_file import notes_from_onnx
from samforge.backends.onnxruntime.device_tensor import DeviceTensor
from samforge.backends.onnxruntime.libraries import PROVIDER, require_libraries, require_provider
from samforge.backends.onnxruntime.placement import RECORD, check_placement
from samforge.backends.onnxruntime.session import (
    BoundSession,
    Notes,
    installed_version,
    ort,
    session_options,
)
from samforge.backends.tensorrt.cuda import Context, Gpu, Stream, gpu_here
from samforge.backends.tensorrt.device_array import DeviceArray, array_from_dlpack
from samforge.core import targets
from samforge.core.devices import CUDA, gpu_index, require_kind
from samforge.core.errors import ForeignBundle, SettingError, ShapeError
from samforge.core.facts import FACTS_KEY
from samforge.core.session import (
    PartSpec,
    Session,
    TensorFormat,
    checked_options,
    checked_tensors,
)

PROVIDER_OPTIONS = {
    # Its default rounds the factors of fp32 products to 10 bits, and fp32 should be fp32.
    "use_tf32": "0",
    # The default times every convolution at its first call, and two sessions may differ by it.
    "cudnn_conv_algo_search": "HEURISTIC",
    # Sums of squares over channels of halves would be kept in half.
    "enable_skip_layer_norm_strict_mode": "1",
    "arena_extend_strategy": "kSameAsRequested",
}
"""How the CUDA provider is set up, by its own names and values."""
_UNSYNCHRONIZED = "disable_synchronize_execution_providers"


class DeviceBoundSession(BoundSession):
    """Runs one ``.onnx`` file on tensors that lie where it computes."""

    captures = False
    """Its work is queued on a stream of its own, with a rendezvous before it."""

    def __init__(  # noqa: PLR0913  # the base's arguments and the place
        self,
        path: Path,
        spec: PartSpec,
        options: Any,
        providers: list[Any],
        notes: Notes,
        *,
        place: tuple[str, int],
        stream: Stream | None = None,
    ) -> None:
        super().__init__(path, spec, options, providers, notes)
        self._place, self._stream = place, stream
        self.formats = {tensor.name: TensorFormat(dtype=tensor.dtype) for tensor in spec.inputs}
        self._lock = threading.Lock()
        self._queued = ort.RunOptions()
        self._queued.add_run_config_entry(_UNSYNCHRONIZED, "1")

    @property
    def device(self) -> str:
        """Where tensors of ``run_on_device`` lie: ``cuda:0``."""
        kind, index = self._place
        return kind if kind == "cpu" else f"{kind}:{index}"

    def run_on_device(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Run the part once on tensors of the device; nothing passes through the host.

        It returns when the work is queued, behind what is queued in the legacy default stream
        (where torch works unless told otherwise); what is queued there later waits for it.

        Args:
            tensors: One for every input, packed row by row, from any library that speaks DLPack
                (torch, CuPy, JAX), or what another session gave.

        Returns:
            New tensors on the device; ``torch.from_dlpack(tensor)`` shares their memory, which
            lives as long as one of the two.

        Raises:
            ShapeError: A name, type or shape differs from the part's interface, or a tensor lies
                elsewhere or is not packed.
        """
        self.require_open()
        if missing := {tensor.name for tensor in self.spec.inputs} ^ set(tensors):
            expected = sorted(tensor.name for tensor in self.spec.inputs)
            raise ShapeError(
                f"{self.spec.name} wants the inputs {expected}, got {sorted(tensors)} "
                f"(differ in {', '.join(sorted(missing))})."
            )
        arrays: Any = {name: self._taken(name, given) for name, given in tensors.items()}
        checked_tensors(self.spec, arrays)
        kind, index = self._place
        with self._lock:  # one call queues all of its work before the next begins
            session = self.require_open()
            binding = session.io_binding()
            for name, array in arrays.items():
                dtype = np.dtype(array.dtype)
                binding.bind_input(name, kind, index, dtype, array.shape, array.pointer)
            for tensor in self.spec.outputs:
                binding.bind_output(tensor.name, kind, index)
            self._wait_for_others()
            session.run_with_iobinding(binding, self._queued)
            values = binding.get_outputs()
        return {
            tensor.name: DeviceTensor(
                value=value,
                shape=tuple(int(axis) for axis in value.shape()),
                dtype=tensor.dtype,
                device=self.device,
                stream=self._stream,
            )
            for tensor, value in zip(self.spec.outputs, values, strict=True)
        }

    def _taken(self, name: str, given: Any) -> DeviceArray:
        """Look at a tensor, and wait, in the stream, for whoever still computes it."""
        pointer = None if self._stream is None else self._stream.pointer
        array = array_from_dlpack(name, given, stream=pointer)
        wanted = -1 if self._place[0] == "cpu" else self._place[1]
        if array.device != wanted:
            place = "the processor" if array.device < 0 else f"cuda:{array.device}"
            raise ShapeError(
                f"{self.spec.name} runs on {self.device}, and {name} lies on {place}. "
                "Move it there first."
            )
        return array

    def close(self) -> None:
        """Free the weights; a call that runs in another thread finishes first.

        After a fork it frees nothing: the GPU's context belongs to the parent.
        """
        if self.is_inherited:
            return
        with self._lock:
            super().close()
            if self._stream is not None:
                self._stream.synchronize()
                self._stream.close()

    def _wait_for_others(self) -> None:
        """Queue what follows behind everything that is queued on the device."""

    def _run_bound(self, session: Any, binding: Any) -> None:
        with self._lock:
            self.require_open()
            self._wait_for_others()
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()


class CudaSession(DeviceBoundSession):
    """Runs one ``.onnx`` file on one GPU."""

    runtime = targets.ONNXRUNTIME_CUDA.name

    def __init__(self, path: Path, spec: PartSpec, *, gpu_index: int = 0) -> None:
        gpu = _usable(path, gpu_index)
        self._context = Context(gpu.index)
        stream = Stream(follows_default=True)
        notes = notes_from_onnx(path)
        options = session_options(notes)
        options.add_session_config_entry(RECORD, "1")
        settings = {
            **PROVIDER_OPTIONS,
            "device_id": str(gpu.index),
            "user_compute_stream": str(stream.pointer),
        }
        providers = [(PROVIDER, settings), "CPUExecutionProvider"]
        place = ("cuda", gpu.index)
        super().__init__(path, spec, options, providers, notes, place=place, stream=stream)
        check_placement(self._session, PROVIDER, path, notes)
        self.processor = f"{gpu.name} (cuda:{gpu.index})"
        self.hold()

    def _wait_for_others(self) -> None:
        # An output that is let go gives its memory back while another session may still be to read
        # it, in a stream that ours does not know. An action in the legacy default stream waits for
        # all streams that take turns with it, and they for it: CUDA Runtime API, stream
        # synchronization behavior.
        self._context.make_current()
        if self._stream is not None:
            self._stream.order_before(None)


def _usable(path: Path, index: int) -> Gpu:
    """The GPU to run on, with all that ONNX Runtime needs to use it."""
    require_provider(ort)
    gpu = gpu_here(index)
    if gpu is None:
        raise ForeignBundle(
            f"{path} was built for an NVIDIA GPU, and there is none here (cuda:{index}). Run it "
            "where there is one, or build for --target onnxruntime or openvino."
        )
    require_libraries(ort)
    return gpu


@dataclass(frozen=True, slots=True)
class OnnxRuntimeCudaBackend:
    """ONNX Runtime's CUDA execution provider: GPUs without a compiler and without TensorRT."""

    name: str = targets.ONNXRUNTIME_CUDA.name

    def version(self) -> str | None:
        """Version of the installed package, or None where it cannot run: other wheel, no GPU."""
        if PROVIDER not in ort.get_available_providers() or gpu_here() is None:
            return None
        return installed_version(*targets.ONNXRUNTIME_CUDA.distributions) or str(ort.__version__)

    def processors(self, runtime: Any) -> tuple[str, ...]:
        """The GPU at hand.

        Raises:
            MissingExtra: The module is of the package for processors, or CUDA's libraries lack.
        """
        require_provider(runtime)
        gpu = gpu_here()
        if gpu is None:
            return ("builds bundles; no GPU here to run them",)
        require_libraries(runtime)
        return (str(gpu),)

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
        """Load an ``.onnx`` file onto the GPU.

        Raises:
            MissingExtra: The package for GPUs or a library of CUDA is not installed.
            ForeignBundle: There is no GPU.
            EngineError: Operators would run on the processor.
            DamagedBundle: The file does not load or is not the part the manifest says.
            SettingError: ``threads`` is given, or an option, or ``device`` is the processor.
        """
        checked_options(self.name, options, {})
        require_kind(self.name, device, (CUDA,))
        if threads is not None:
            raise SettingError(
                "ONNX Runtime on CUDA runs on the GPU: it has no processor threads to count. "
                "Leave the option out."
            )
        return CudaSession(path, spec, gpu_index=gpu_index(device))


BACKEND = OnnxRuntimeCudaBackend()
