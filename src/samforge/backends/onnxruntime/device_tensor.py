"""Outputs that stay where they were computed: ONNX Runtime's values, spoken as DLPack.

DLPack: https://dmlc.github.io/dlpack/latest/python_spec.html. ONNX Runtime 1.31 gives booleans away
as 8-bit integers; here they stay booleans.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

from samforge.backends.tensorrt.cuda import Stream
from samforge.backends.tensorrt.device_array import CUDA
from samforge.core.session import Array

_CODE_OFFSET = 20
"""Bytes before ``dtype.code`` in a ``DLTensor``: data, device type, device id, number of axes."""
_BOOLEAN = 6
"""``kDLBool``."""
_DEFAULT_STREAMS = (None, 0, 1, 2)
"""Streams that wait for ours by themselves: no word, the legacy default stream, and a thread's."""
_NO_ORDER = -1
"""What a consumer says that orders by itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceTensor:
    """One output of a session, in memory that lives as long as this does."""

    value: Any
    """ONNX Runtime's ``OrtValue``."""
    shape: tuple[int, ...]
    """Its shape; packed row by row."""
    dtype: str
    """numpy name of the element type."""
    device: str
    """``cuda:0``, or ``cpu``."""
    stream: Stream | None
    """Where it is computed; None on the processor."""

    @property
    def pointer(self) -> int:
        """Address of the first element."""
        return int(self.value.data_ptr())

    def __dlpack_device__(self) -> tuple[int, int]:
        kind, index = self.value.__dlpack_device__()
        return int(kind), int(index)

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        """A capsule for ``from_dlpack``, which shares the memory.

        Args:
            stream: Where it will be read: that stream waits for what is still computed.
        """
        self.order_before(stream)
        capsule = self.value.__dlpack__(stream=None)
        if self.dtype == "bool":
            pointer = ctypes.pythonapi.PyCapsule_GetPointer
            pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
            address = pointer(capsule, b"dltensor")
            ctypes.c_uint8.from_address(address + _CODE_OFFSET).value = _BOOLEAN
        return capsule

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """How Numba and CuPy read it.

        Raises:
            AttributeError: It lies on the processor.
        """
        if self.__dlpack_device__()[0] != CUDA or self.stream is None:
            raise AttributeError(f"a tensor on {self.device} has no CUDA array interface")
        return {
            "shape": self.shape,
            "typestr": np.dtype(self.dtype).str,
            "data": (self.pointer, False),
            "version": 3,
            "strides": None,
            "stream": self.stream.pointer,
        }

    def order_before(self, stream: int | None) -> None:
        """Make a stream wait for this tensor; the default streams do so without being told."""
        if self.stream is None or stream in (*_DEFAULT_STREAMS, _NO_ORDER):
            return
        self.stream.order_before(stream)

    def numpy(self) -> Array:
        """A copy on the host."""
        if self.stream is not None:
            self.stream.synchronize()
        return np.array(self.value.numpy())
