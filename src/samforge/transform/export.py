"""Part -> ExportedProgram: the graph everything later is made from."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch

# Registers quantize and dequantize: a .pt2 that holds them does not load without.
import torch.ao.quantization.fx._decomposed
from torch import Tensor
from torch.export import Dim, ExportedProgram

from samforge.core import axes
from samforge.core.axes import axes_of
from samforge.core.errors import ExportError
from samforge.core.facts import FACTS_KEY
from samforge.core.files import output_errors
from samforge.core.session import PartSpec
from samforge.models.part import Part

TRACED_SIZES = axes.TRACED_SIZES
"""Sizes of the dynamic axes while tracing."""


def exported_from_part(part: Part, inputs: dict[str, Tensor]) -> ExportedProgram:
    """Trace a part with its dynamic axes.

    Args:
        part: In eval mode.
        inputs: Example tensors with dynamic axes of the sizes :data:`TRACED_SIZES`.

    Returns:
        A program whose dynamic axes have the part's limits, and which carries neither example
        tensors nor paths of this machine.

    Raises:
        ExportError: torch.export gave up, or an axis became a constant.
        SettingError: The part has an axis that nobody knows.
    """
    axes_of(part.spec)  # refuses what is in no table
    dims = {
        axis: Dim(axis, min=low) if high is None else Dim(axis, min=low, max=high)
        for axis, (low, high) in part.axis_limits.items()
    }
    shapes = tuple(
        {index: dims[axis] for index, axis in enumerate(tensor.shape) if isinstance(axis, str)}
        for tensor in part.spec.inputs
    )
    arguments = tuple(inputs[tensor.name] for tensor in part.spec.inputs)
    try:
        with torch.no_grad():
            exported = torch.export.export(
                part.module, arguments, dynamic_shapes=shapes, strict=False
            )
    except Exception as error:
        raise ExportError(f"{part.spec.name} cannot be exported: {error}") from error
    return _without_traces(exported)


def save_exported(exported: ExportedProgram, path: Path, *, facts: str | None = None) -> None:
    """Write a ``.pt2``.

    Args:
        exported: The program.
        path: Where to.
        facts: What the file says of itself; None for one that no bundle will hold.

    Raises:
        OutputError: The file cannot be written.
    """
    with output_errors(path), path.open("wb") as file:
        output = _LateErrors(file)
        notes = None if facts is None else {FACTS_KEY: facts}
        torch.export.save(exported, cast(IO[bytes], output), extra_files=notes)
        if output.error is not None:
            raise output.error


def exported_from_file(path: Path) -> ExportedProgram:
    """Read a ``.pt2``.

    Raises:
        ExportError: It is damaged or of a torch that this one does not read.
    """
    try:
        with warnings.catch_warnings():
            # torch 2.11 warns of memory of its own that it only reads.
            warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
            return torch.export.load(path)
    except Exception as error:
        raise ExportError(f"{path} cannot be read by torch {torch.__version__}: {error}") from error


def run_exported(
    exported: ExportedProgram, spec: PartSpec, inputs: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Run a program on named tensors, once."""
    (outputs,) = runs_of_exported(exported, spec, [inputs])
    return outputs


def runs_of_exported(
    exported: ExportedProgram, spec: PartSpec, samples: Iterable[dict[str, Tensor]]
) -> Iterator[dict[str, Tensor]]:
    """Run a program on named tensors, one sample after the other; memory is freed at the end."""
    # Callers check the interface. Guards of a program that was exported twice refuse one prompt.
    module = exported.module(check_guards=False)
    for inputs in samples:
        with torch.inference_mode():
            results = module(*(inputs[tensor.name] for tensor in spec.inputs))
        if isinstance(results, Tensor):
            results = (results,)
        yield {tensor.name: result for tensor, result in zip(spec.outputs, results, strict=True)}
    # The module's tensors are objects of their own that a cache of torch keeps.
    kept = {id(tensor) for tensor in (*exported.state_dict.values(), *exported.constants.values())}
    own = [*module.parameters(), *module.buffers()]
    release(tensor for tensor in own if id(tensor) not in kept)


def release(tensors: Iterable[Tensor]) -> None:
    """Free the memory of tensors that nobody will read again.

    Deleting a program is not enough: caches of torch.export and of the ONNX rewriter keep the last
    graph alive, at full size another 1.7 GiB in each (torch 2.13, onnxscript 0.7.2).
    """
    for tensor in tensors:
        tensor.data = torch.empty(0)


class _LateErrors(io.RawIOBase):
    """A file that keeps its first error for later.

    torch's archive writer ends the whole process (``terminate``) when a write fails, as it does on
    a full disk (torch 2.13).
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def writable(self) -> bool:
        """Torch asks."""
        return True

    def seekable(self) -> bool:
        """Torch asks."""
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:  # noqa: ARG002
        """Torch rewinds when it is done: nothing of ours to do."""
        return offset

    def write(self, content: Any, /) -> int:
        """Take all of it."""
        if self.error is None:
            try:
                self._file.write(content)
            except OSError as error:
                self.error = error
        return memoryview(content).nbytes


def _without_traces(exported: ExportedProgram) -> ExportedProgram:
    """Drop example tensors (hundreds of megabytes at full size) and stack traces."""
    exported.example_inputs = None
    for node in exported.graph.nodes:
        node.meta.pop("stack_trace", None)
    return exported
