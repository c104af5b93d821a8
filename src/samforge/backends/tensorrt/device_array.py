"""Arrays on the GPU: taken from any library by DLPack, given away by CUDA's array interface.

DLPack: https://dmlc.github.io/dlpack/latest/python_spec.html; the interface: version 3 of
https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from samforge.backends.tensorrt.cuda import Buffer
from samforge.core.errors import ShapeError

CPU, CUDA, CUDA_MANAGED = 1, 2, 13
_KINDS = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 6: "bool"}


class _Tensor(ctypes.Structure):
    """``DLTensor``: also the beginning of ``DLManagedTensor``, which is what a capsule holds."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceArray:
    """An array on a GPU, packed row by row."""

    pointer: int
    """Address of the first element."""
    shape: tuple[int, ...]
    """Its shape."""
    dtype: str
    """numpy name of the element type, or ``bfloat16``."""
    device: int
    """Number of the GPU; -1 is the processor."""
    owner: Any
    """Keeps the memory alive."""

    @property
    def nbytes(self) -> int:
        """What it takes."""
        return math.prod(self.shape) * element_bytes(self.dtype)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """How torch (``torch.as_tensor(array, device="cuda")``), CuPy and Numba read it."""
        return {
            "shape": self.shape,
            "typestr": np.dtype(self.dtype).str,
            "data": (self.pointer, False),
            "version": 3,
            "strides": None,
        }

    @classmethod
    def new(cls, shape: tuple[int, ...], dtype: str, device: int) -> DeviceArray:
        """Allocate one; its content is undefined."""
        buffer = Buffer(math.prod(shape) * element_bytes(dtype))
        return cls(pointer=buffer.pointer, shape=shape, dtype=dtype, device=device, owner=buffer)


def array_from_dlpack(name: str, given: Any, *, stream: int | None) -> DeviceArray:
    """Look at a tensor of another library, without a copy.

    Args:
        name: Of the input, for messages.
        given: A DeviceArray, or anything with ``__dlpack__``.
        stream: CUDA stream in which it will be read: the other library makes it wait for what it
            still computes there. None on the processor.

    Raises:
        ShapeError: It is no such tensor, or not packed row by row.
    """
    if isinstance(given, DeviceArray):
        return given
    if not hasattr(given, "__dlpack__"):
        raise ShapeError(
            f"{name} wants a tensor on the GPU (anything with __dlpack__), got "
            f"{type(given).__name__}."
        )
    device_type, device_id = (int(number) for number in given.__dlpack_device__())
    capsule = given.__dlpack__(stream=stream) if device_type != CPU else given.__dlpack__()
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    tensor = _Tensor.from_address(pointer(capsule, b"dltensor"))
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    if tensor.strides:
        strides = tuple(tensor.strides[axis] for axis in range(tensor.ndim))
        if not _packed(shape, strides):
            raise ShapeError(
                f"{name} is not packed row by row (shape {shape}, strides {strides}). "
                "Make it contiguous first."
            )
    kind = _KINDS.get(tensor.code, f"code {tensor.code} ")
    return DeviceArray(
        pointer=int(tensor.data or 0) + int(tensor.byte_offset),
        shape=shape,
        dtype="bool" if kind == "bool" else f"{kind}{tensor.bits}",
        device=device_id if device_type in (CUDA, CUDA_MANAGED) else -1,
        owner=capsule,  # not consumed: its own destructor gives the memory back
    )


def element_bytes(dtype: str) -> int:
    """Size of one element."""
    return 2 if dtype == "bfloat16" else int(np.dtype(dtype).itemsize)


def _packed(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True
