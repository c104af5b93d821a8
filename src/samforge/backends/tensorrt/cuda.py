"""The few calls of the CUDA driver that a session needs, through ctypes.

The driver's library is there wherever a GPU works, so no CUDA toolkit, no torch and no further
package is needed. Names and signatures: CUDA Driver API reference, 12.x and 13.x.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from samforge.core.errors import SamforgeError

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_DEFAULT, _NON_BLOCKING = 0, 1  # CU_STREAM_DEFAULT and CU_STREAM_NON_BLOCKING
_NO_TIMING = 2  # CU_EVENT_DISABLE_TIMING
_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED


class CudaError(SamforgeError):
    """A call of the CUDA driver failed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One GPU."""

    index: int
    """Number in CUDA's order."""
    name: str
    """``NVIDIA L4``."""
    compute_capability: str
    """``89``."""

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.compute_capability})"


def gpu_here(index: int = 0) -> Gpu | None:
    """The GPU with a number, or None when there is none or no driver."""
    driver = _driver()
    if driver is None:
        return None
    count = ctypes.c_int()
    if driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or index >= count.value:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    call("cuDeviceGet", ctypes.byref(device), index)
    call("cuDeviceGetName", name, len(name), device)
    call("cuDeviceGetAttribute", ctypes.byref(major), _MAJOR, device)
    call("cuDeviceGetAttribute", ctypes.byref(minor), _MINOR, device)
    return Gpu(
        index=index,
        name=name.value.decode(errors="replace"),
        compute_capability=f"{major.value}{minor.value}",
    )


@lru_cache(maxsize=1)
def _driver() -> Any:
    """The driver's library, initialized; None when there is none."""
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError:
        return None
    return driver if driver.cuInit(0) == 0 else None


def call(name: str, *arguments: Any) -> None:
    """Call a function of the driver.

    Raises:
        CudaError: It failed, or there is no driver.
    """
    driver = _driver()
    if driver is None:
        raise CudaError("There is no NVIDIA GPU or driver here: check nvidia-smi.")
    code = getattr(driver, name)(*arguments)
    if code != 0:
        text = ctypes.c_char_p()
        driver.cuGetErrorString(code, ctypes.byref(text))
        said = text.value.decode() if text.value else "unknown error"
        raise CudaError(f"{name} failed: {said} ({code}).")


class Context:
    """The primary context of a GPU: the one torch and TensorRT use too."""

    def __init__(self, index: int = 0) -> None:
        self._device = ctypes.c_int()
        self._handle = ctypes.c_void_p()
        call("cuDeviceGet", ctypes.byref(self._device), index)
        call("cuDevicePrimaryCtxRetain", ctypes.byref(self._handle), self._device)
        self.make_current()

    def make_current(self) -> None:
        """Use this context in the calling thread."""
        call("cuCtxSetCurrent", self._handle)

    def close(self) -> None:
        """Give the context back."""
        if self._handle.value:
            call("cuDevicePrimaryCtxRelease_v2", self._device)
            self._handle = ctypes.c_void_p()


class Stream:
    """An ordered queue of work on the GPU.

    Args:
        follows_default: Whether it takes turns with the legacy default stream, where torch works
            unless it is told otherwise: each waits for what was queued in the other before.
    """

    def __init__(self, *, follows_default: bool = False) -> None:
        self._handle = ctypes.c_void_p()
        flags = _DEFAULT if follows_default else _NON_BLOCKING
        call("cuStreamCreate", ctypes.byref(self._handle), flags)

    @property
    def pointer(self) -> int:
        """What libraries take as a stream."""
        return int(self._handle.value or 0)

    def synchronize(self) -> None:
        """Wait until everything in it is done."""
        call("cuStreamSynchronize", self._handle)

    def order_before(self, other: int | None) -> None:
        """Make another stream wait for what is queued here so far.

        Args:
            other: What libraries take as a stream; None is the legacy default stream.
        """
        event = ctypes.c_void_p()
        call("cuEventCreate", ctypes.byref(event), _NO_TIMING)
        try:
            call("cuEventRecord", event, self._handle)
            call("cuStreamWaitEvent", ctypes.c_void_p(other), event, 0)
        finally:
            call("cuEventDestroy_v2", event)  # the driver frees it when the wait is over

    def begin_capture(self) -> None:
        """Record what follows instead of running it."""
        call("cuStreamBeginCapture_v2", self._handle, _RELAXED)

    def end_capture(self) -> Graph:
        """Stop recording and make what was recorded runnable."""
        graph = ctypes.c_void_p()
        call("cuStreamEndCapture", self._handle, ctypes.byref(graph))
        try:
            return Graph(graph)
        finally:
            call("cuGraphDestroy", graph)

    def close(self) -> None:
        """Destroy the stream."""
        if self._handle.value:
            call("cuStreamDestroy_v2", self._handle)
            self._handle = ctypes.c_void_p()


class Graph:
    """Recorded work that starts with one call."""

    def __init__(self, graph: ctypes.c_void_p) -> None:
        self._handle = ctypes.c_void_p()
        flags = ctypes.c_ulonglong(0)
        call("cuGraphInstantiateWithFlags", ctypes.byref(self._handle), graph, flags)

    def launch(self, stream: Stream) -> None:
        """Run it in a stream."""
        call("cuGraphLaunch", self._handle, ctypes.c_void_p(stream.pointer))

    def close(self) -> None:
        """Free it."""
        if self._handle.value:
            call("cuGraphExecDestroy", self._handle)
            self._handle = ctypes.c_void_p()


class Buffer:
    """Memory on the GPU."""

    def __init__(self, size: int) -> None:
        self.size = max(1, size)
        self._pointer = ctypes.c_uint64()
        call("cuMemAlloc_v2", ctypes.byref(self._pointer), ctypes.c_size_t(self.size))

    @property
    def pointer(self) -> int:
        """Its address; 256-byte aligned."""
        return int(self._pointer.value)

    def close(self) -> None:
        """Free it."""
        if self._pointer.value:
            call("cuMemFree_v2", self._pointer)
            self._pointer = ctypes.c_uint64()

    def __del__(self) -> None:
        if self._pointer.value and not sys.is_finalizing():
            self.close()


def copy_to_gpu(target: int, source: int, size: int, stream: Stream) -> None:
    """Copy host memory to the GPU, in stream order."""
    _copy("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(target), ctypes.c_void_p(source), size, stream)


def copy_to_host(target: int, source: int, size: int, stream: Stream) -> None:
    """Copy GPU memory to the host, in stream order."""
    _copy("cuMemcpyDtoHAsync_v2", ctypes.c_void_p(target), ctypes.c_uint64(source), size, stream)


def copy_on_gpu(target: int, source: int, size: int, stream: Stream) -> None:
    """Copy within the GPU, in stream order."""
    _copy("cuMemcpyDtoDAsync_v2", ctypes.c_uint64(target), ctypes.c_uint64(source), size, stream)


def _copy(name: str, target: Any, source: Any, size: int, stream: Stream) -> None:
    call(name, target, source, ctypes.c_size_t(size), ctypes.c_void_p(stream.pointer))
