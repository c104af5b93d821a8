"""PyTorch itself, running the exported program: the reference every other backend is held to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from samforge.backends._archive import note_from_archive
from samforge.core.devices import CPU, require_kind
from samforge.core.errors import DamagedBundle, MissingExtra, SettingError, ShapeError
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

if TYPE_CHECKING:
    from torch.export import ExportedProgram


class TorchSession(OfOneProcess):
    """Runs one exported program, operator by operator."""

    runtime = "torch"

    def __init__(self, program: ExportedProgram, spec: PartSpec, place: Path | str) -> None:
        """Take a program.

        Args:
            program: From ``torch.export``.
            spec: Interface that it must have.
            place: Where it comes from, for messages.

        Raises:
            DamagedBundle: It is not the part.
        """
        import torch

        self._module: Callable[..., Any] | None = program.module(check_guards=False)
        signature = program.graph_signature
        nodes = {node.name: node for node in program.graph.nodes}
        check_artifact(
            place,
            spec,
            _tensors(signature.user_inputs, nodes, spec.inputs),
            _tensors(signature.user_outputs, nodes, spec.outputs),
        )
        self.spec = spec
        self.processor = f"CPU, {torch.get_num_threads()} threads"
        self.hold()

    def run(self, tensors: Tensors) -> dict[str, Array]:
        """Run the part once; arrays and tensors share their memory.

        An input that is not contiguous or not writable is copied: torch has no tensors like that.

        Raises:
            ShapeError: A name, type or shape differs from the part's interface.
        """
        import torch

        self.require_own(f"The session of {self.spec.name}")
        module = self._module  # close() in another thread takes it away
        if module is None:
            raise ShapeError(f"The session of {self.spec.name} is closed. Load it again.")
        inputs = checked_tensors(self.spec, tensors)
        with torch.inference_mode():
            results = module(
                *(
                    torch.from_numpy(np.require(inputs[tensor.name], requirements=["C", "W"]))
                    for tensor in self.spec.inputs
                )
            )
        if isinstance(results, torch.Tensor):
            results = (results,)
        return {
            tensor.name: result.numpy()
            for tensor, result in zip(self.spec.outputs, results, strict=True)
        }

    def close(self) -> None:
        """Free the weights; after a fork, nothing."""
        if not self.is_inherited:
            self._module = None


def _program_from_file(path: Path) -> ExportedProgram:
    try:
        import torch
        import torch.ao.quantization.fx._decomposed  # registers the operators of Q/DQ graphs
    except ImportError as error:
        raise MissingExtra("PyTorch", "build") from error
    try:
        return torch.export.load(path)
    except Exception as error:  # zip, JSON and operator errors alike
        raise DamagedBundle(f"torch {torch.__version__} cannot load {path}: {error}") from error


def _tensors(
    names: Iterable[Any], nodes: Mapping[str, Any], wanted: tuple[TensorSpec, ...]
) -> list[TensorSpec]:
    """Tensors of a program in order; it keeps no names of results, so they get those wanted."""
    found = []
    for name, tensor in zip_longest(map(str, names), wanted):
        value = getattr(nodes.get(name), "meta", {}).get("val")
        shape = getattr(value, "shape", ())
        found.append(
            TensorSpec(
                name=tensor.name if tensor else name,
                dtype=str(getattr(value, "dtype", "?")).removeprefix("torch."),
                shape=tuple(axis if isinstance(axis, int) else str(axis) for axis in shape),
            )
        )
    return found


@dataclass(frozen=True, slots=True)
class TorchBackend:
    """PyTorch without compilation."""

    name: str = "torch"

    def version(self) -> str | None:
        """Version of the installed package, or None."""
        try:
            return version("torch")
        except PackageNotFoundError:
            return None

    def processors(self, runtime: Any) -> tuple[str, ...]:
        """The processor with torch's threads, and every GPU."""
        gpus = (runtime.cuda.get_device_name(i) for i in range(runtime.cuda.device_count()))
        return (f"CPU, {runtime.get_num_threads()} threads", *gpus)

    def facts_from_artifact(self, path: Path) -> str | None:
        """The stamp among the archive's extra files."""
        return note_from_archive(path, f"/extra/{FACTS_KEY}")

    def session_from_artifact(
        self,
        path: Path,
        spec: PartSpec,
        *,
        threads: int | None = None,
        device: str | None = None,
        options: Mapping[str, str] | None = None,
    ) -> Session:
        """Load a ``.pt2`` file.

        Raises:
            MissingExtra: torch is not installed.
            DamagedBundle: The file does not load.
            SettingError: ``threads`` or an option is given, or ``device`` is a GPU.
        """
        checked_threads(threads)
        checked_options(self.name, options, {})
        require_kind(self.name, device, (CPU,))
        if threads is not None:
            raise SettingError(
                "torch has one thread count for the whole process. "
                "Set it there (torch.set_num_threads) instead of per session."
            )
        return TorchSession(_program_from_file(path), spec, path)


BACKEND = TorchBackend()
