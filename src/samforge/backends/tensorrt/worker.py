"""One execution context with its stream and its memory: runs one call at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from samforge.backends.tensorrt.cuda import (
    Buffer,
    Context,
    Graph,
    Stream,
    copy_on_gpu,
    copy_to_gpu,
    copy_to_host,
)
from samforge.backends.tensorrt.device_array import DeviceArray, array_from_dlpack, element_bytes
from samforge.backends.tensorrt.library import Library
from samforge.backends.tensorrt.settings import AxisRange
from samforge.core.errors import EngineError, ShapeError
from samforge.core.session import Array, PartSpec, TensorSpec

Sizes: TypeAlias = Mapping[str, int]


def shape_at(tensor: TensorSpec, sizes: Sizes) -> tuple[int, ...]:
    """Shape of a tensor at some sizes of its dynamic axes."""
    return tuple(sizes[axis] if isinstance(axis, str) else axis for axis in tensor.shape)


def sizes_of(spec: PartSpec, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Size of every dynamic axis of a call."""
    return {
        axis: size
        for tensor in spec.inputs
        for axis, size in zip(tensor.shape, shapes[tensor.name], strict=True)
        if isinstance(axis, str)
    }


def buffer_bytes(spec: PartSpec, axes: Mapping[str, AxisRange]) -> dict[str, int]:
    """Memory that every input and output needs at the largest sizes."""
    largest = {name: axis.max for name, axis in axes.items()}
    return {
        tensor.name: math.prod(shape_at(tensor, largest)) * element_bytes(tensor.dtype)
        for tensor in (*spec.inputs, *spec.outputs)
    }


class Worker:
    """Buffers are bound once, at the largest sizes; calls only set shapes and copy."""

    def __init__(
        self, lib: Library, engine: Any, spec: PartSpec, axes: Mapping[str, AxisRange], gpu: int
    ) -> None:
        self._spec = spec
        self._gpu = gpu
        self._cuda = Context(gpu)
        self._context = _context(lib, engine)
        self._stream = Stream()
        self._graph: Graph | None = None
        self._captures = not lib.flavour.captures_graphs
        self._sizes: dict[str, int] | None = None
        self._repeats = 0
        self._buffers = {name: Buffer(size) for name, size in buffer_bytes(spec, axes).items()}
        for name, buffer in self._buffers.items():
            if not self._context.set_tensor_address(name, buffer.pointer):
                raise EngineError(f"The engine of {spec.name} does not take memory for {name}.")

    @property
    def context(self) -> Any:
        """The library's execution context, with the shapes of the last call."""
        return self._context

    def run(self, inputs: Mapping[str, Array], sizes: dict[str, int]) -> dict[str, Array]:
        """Run on host arrays: copied in, copied out."""
        self._cuda.make_current()
        held = [np.ascontiguousarray(inputs[tensor.name]) for tensor in self._spec.inputs]
        for tensor, array in zip(self._spec.inputs, held, strict=True):
            target = self._buffers[tensor.name].pointer
            copy_to_gpu(target, array.ctypes.data, array.nbytes, self._stream)
        self._enqueue(sizes)
        outputs: dict[str, Array] = {}
        for tensor in self._spec.outputs:
            output = np.empty(shape_at(tensor, sizes), tensor.dtype)
            source = self._buffers[tensor.name].pointer
            copy_to_host(output.ctypes.data, source, output.nbytes, self._stream)
            outputs[tensor.name] = output
        self._stream.synchronize()
        return outputs

    def run_on_device(self, tensors: Mapping[str, Any]) -> dict[str, DeviceArray]:
        """Run on tensors of the GPU: nothing passes through the host."""
        self._cuda.make_current()
        arrays = self._taken(tensors)
        sizes = sizes_of(self._spec, {name: array.shape for name, array in arrays.items()})
        for name, array in arrays.items():
            copy_on_gpu(self._buffers[name].pointer, array.pointer, array.nbytes, self._stream)
        self._enqueue(sizes)
        outputs = {}
        for tensor in self._spec.outputs:
            output = DeviceArray.new(shape_at(tensor, sizes), tensor.dtype, self._gpu)
            source = self._buffers[tensor.name].pointer
            copy_on_gpu(output.pointer, source, output.nbytes, self._stream)
            outputs[tensor.name] = output
        self._stream.synchronize()
        return outputs

    def close(self) -> None:
        """Free the memory."""
        self._cuda.make_current()
        self._stream.synchronize()
        self._drop_graph()
        self._context = None
        for buffer in self._buffers.values():
            buffer.close()
        self._stream.close()
        self._cuda.close()

    def _taken(self, tensors: Mapping[str, Any]) -> dict[str, DeviceArray]:
        arrays = {
            tensor.name: array_from_dlpack(
                tensor.name, tensors[tensor.name], stream=self._stream.pointer
            )
            for tensor in self._spec.inputs
        }
        for tensor in self._spec.inputs:
            array = arrays[tensor.name]
            if array.device != self._gpu:
                place = "the processor" if array.device < 0 else f"cuda:{array.device}"
                raise ShapeError(
                    f"{self._spec.name} runs on cuda:{self._gpu}, and {tensor.name} lies on "
                    f"{place}. Move it there first."
                )
        return arrays

    def _enqueue(self, sizes: dict[str, int]) -> None:
        """Run at the given sizes; from the third call at the same sizes on, as a CUDA graph.

        A graph holds the shapes it was recorded with, so it ends with them.
        """
        if sizes != self._sizes:
            self._drop_graph()
            for tensor in self._spec.inputs:
                if not self._context.set_input_shape(tensor.name, shape_at(tensor, sizes)):
                    raise ShapeError(
                        f"The engine of {self._spec.name} refuses the shape "
                        f"{shape_at(tensor, sizes)} of {tensor.name}."
                    )
            self._sizes, self._repeats = dict(sizes), 0
        self._repeats += 1
        if self._graph is not None:
            self._graph.launch(self._stream)
        elif self._captures and self._repeats > 1:
            self._stream.begin_capture()
            try:
                self._execute()
            finally:
                self._graph = self._stream.end_capture()
            self._graph.launch(self._stream)
        else:
            self._execute()

    def _execute(self) -> None:
        if not self._context.execute_async_v3(self._stream.pointer):
            raise EngineError(f"The engine of {self._spec.name} could not be started.")

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._stream.synchronize()
            self._graph.close()
            self._graph = None


def _context(lib: Library, engine: Any) -> Any:
    """An execution context; TensorRT for RTX records CUDA graphs itself when it is asked to."""
    if lib.flavour.captures_graphs:
        config = engine.create_runtime_config()
        config.cuda_graph_strategy = lib.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        context = engine.create_execution_context(config)
    else:
        context = engine.create_execution_context()
    if context is None:
        raise EngineError(
            f"{lib.flavour.title} cannot make an execution context: the GPU has too little free "
            "memory. Free some, or build with smaller ranges of the dynamic axes."
        )
    return context
