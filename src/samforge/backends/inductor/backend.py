"""AOTInductor: a part compiled ahead of time for one GPU generation, or for the processor.

A package is a ``.pt2`` archive with a shared library in it: it loads in seconds and compiles
nothing. Beside the interface's float32 arrays it takes tensors where they are, in the types the
package was compiled for, which is how the device runtime chains parts without copies.
"""

from __future__ import annotations

import subprocess
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from samforge.backends._archive import notes_from_archive
from samforge.backends.inductor.memory import memory_errors
from samforge.backends.inductor.record import (
    KEY,
    PackageRecord,
    PassedTensor,
    check_device,
    record_from_package,
    record_from_program,
)
from samforge.core.devices import gpu_index, require_kind
from samforge.core.errors import (
    DamagedBundle,
    ExportError,
    MissingExtra,
    OutOfMemory,
    SettingError,
    ShapeError,
)
from samforge.core.facts import FACTS_KEY
from samforge.core.forks import OfOneProcess
from samforge.core.session import (
    Array,
    PartSpec,
    Session,
    TensorFormat,
    Tensors,
    check_artifact,
    checked_options,
    checked_tensors,
    checked_threads,
)
from samforge.core.strict_json import StrictJsonError, strict_json

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram


OPTIONS: Mapping[str, Any] = {
    # What Inductor would pad is rows, 201 of a decoder's queries to 208: an operand's alignment is
    # in its other axis, and the kernel that pads costs half the product. It measures whether to,
    # and no two compilations agree.
    "shape_padding": False,
}
"""Of ``torch._inductor.config``, for whatever is compiled."""


def package_from_exported(
    program: ExportedProgram,
    spec: PartSpec,
    path: Path,
    *,
    precision: str,
    options: Mapping[str, Any] | None = None,
    facts: str | None = None,
) -> PackageRecord:
    """Compile a lowered program for the device its example inputs are on.

    Args:
        program: With example inputs, on its device.
        spec: Interface of the part.
        path: Where to write, ending in ``.aoti.pt2``.
        precision: As the recipe names it, for the record.
        options: Of ``torch._inductor.config``; they hold during the compilation only.
        facts: What the package says of itself in a bundle.

    Raises:
        ExportError: The compiler failed, or the program holds no example inputs.
        OutOfMemory: The GPU has no room to compile the part.
    """
    import torch
    from torch._inductor import aoti_compile_and_package

    if program.example_inputs is None:
        raise ExportError(
            f"{spec.name} has no example inputs, which tell its device. Lower it first "
            "(samforge.transform.lower)."
        )
    record = record_from_program(program, spec, precision)
    settings = {
        **OPTIONS,
        **link_options(),
        **(options or {}),
        "aot_inductor.metadata": {
            KEY: record.to_json(),
            **({} if facts is None else {FACTS_KEY: facts}),
        },
    }
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # torch's compiler uses what torch deprecates (torch.jit.script_method in 2.13).
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            aoti_compile_and_package(program, package_path=str(path), inductor_configs=settings)
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"{record.processor} has no room to compile {spec.name}: {_first_line(error)} "
            "Free the memory that other programs hold."
        ) from error
    except Exception as error:  # of the compiler, Triton and g++ alike
        raise ExportError(
            f"AOTInductor cannot compile {spec.name} for {record.processor}: {error}"
        ) from error
    return record


def link_options() -> dict[str, Any]:
    """Settings that keep the C++ library out of the package.

    Where the compiler finds no ``libstdc++.so`` it links the static one without a word, and a
    package with a second C++ library in it crashes while it loads: seen with torch 2.11 on a CUDA
    image whose ``CXX`` is a g++ of its own, without that link. The runtime library serves as well.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        compiler = get_cpp_compiler()
        asked = [compiler, "-print-file-name=libstdc++.so"]
        found = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    except Exception:  # noqa: BLE001  # no compiler: compiling says it better
        return {}
    # The compiler answers with the bare name where it knows no such file.
    if Path(found).is_absolute():
        return {}
    return {"aot_inductor.custom_op_libs": [":libstdc++.so.6"]}


def loaded_package(path: Path, index: int = -1) -> Any:
    """Load a package's code and weights; its ``boxed_run`` maps a list of tensors to another.

    ``torch._inductor.aoti_load_package`` ends in this call. Before it, once a process, it finds out
    what instructions compiler and processor know, by compiling test programs and starting Python
    for each, to log a warning where the package's differ. :func:`check_device` has refused such a
    package already.

    Args:
        path: The package.
        index: Number of the GPU; -1 takes the current one.
    """
    import torch

    # Threads take turns in a session: the runner's own bookkeeping breaks CUDA graphs.
    single_threaded, runners = True, 1
    return torch._C._aoti.AOTIModelPackageLoader(  # type: ignore[attr-defined,unused-ignore]  # noqa: SLF001
        str(path), "model", single_threaded, runners, index
    )


class InductorSession(OfOneProcess):
    """Runs one package. Calls from several threads follow one another."""

    runtime = "inductor"

    def __init__(self, path: Path, spec: PartSpec, *, device: str | None = None) -> None:
        try:
            import torch
        except ImportError as error:
            raise MissingExtra("PyTorch", "build") from error
        self.record = record_from_package(path)
        check_artifact(
            path,
            spec,
            [passed.spec for passed in self.record.inputs],
            [passed.spec for passed in self.record.outputs],
        )
        compiled_for = self.record.device
        require_kind(f"{path}, compiled for {compiled_for},", device, (compiled_for,))
        index = gpu_index(device)
        check_device(self.record, path, index)

        cuda = compiled_for == "cuda"
        self.device = f"cuda:{index}" if cuda else "cpu"
        self.captures = cuda
        self.formats = {
            one.spec.name: TensorFormat(dtype=one.dtype, channels_last=one.channels_last)
            for one in self.record.inputs
        }
        self._device = torch.device(self.device)
        try:
            self._run: Any = loaded_package(path, index if cuda else -1)
        except Exception as error:
            raise DamagedBundle(
                f"AOTInductor of torch {torch.__version__} cannot load {path}: {error}"
            ) from error
        self._lock = Lock()
        self.spec = spec
        self.processor = (
            f"{torch.cuda.get_device_name(index)} ({self.device})"
            if cuda
            else f"CPU, {torch.get_num_threads()} threads"
        )
        self.hold()

    def run(self, tensors: Tensors) -> dict[str, Array]:
        """Run the part once on arrays.

        Raises:
            ShapeError: A name, type or shape differs from the part's interface.
            OutOfMemory: The GPU has no room for so large a batch.
        """
        import torch

        arrays = checked_tensors(self.spec, tensors)
        placed = {}
        for passed in self.record.inputs:
            array = np.require(arrays[passed.spec.name], requirements=["C", "W"])
            tensor = torch.from_numpy(array).to(self._device, getattr(torch, passed.dtype))
            placed[passed.spec.name] = _in_format(tensor, passed)
        results = self.run_on_device(placed)
        return {
            tensor.name: results[tensor.name]
            .to("cpu", getattr(torch, tensor.dtype))
            .contiguous()
            .numpy()
            for tensor in self.spec.outputs
        }

    def run_on_device(self, tensors: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Run the part once on tensors that are where and how the package wants them.

        Nothing is copied or converted; on a GPU the call returns before the work is done, and it
        may be captured in a CUDA graph.

        Raises:
            ShapeError: A name, type, device or memory format differs from the package's.
            OutOfMemory: The GPU has no room for so large a batch.
        """
        import torch

        self.require_own(f"The session of {self.spec.name}")
        if self._run is None:
            raise ShapeError(f"The session of {self.spec.name} is closed. Load it again.")
        inputs = [self._checked(tensors, passed) for passed in self.record.inputs]
        with self._lock, torch.inference_mode():
            run = self._run
            if run is None:
                raise ShapeError(f"The session of {self.spec.name} is closed. Load it again.")
            with memory_errors(self.spec.name, self._device, inputs[0].shape[0]):
                results = run.boxed_run(inputs)
        return {
            tensor.name: result for tensor, result in zip(self.spec.outputs, results, strict=True)
        }

    def _checked(self, tensors: Mapping[str, Any], passed: PassedTensor) -> torch.Tensor:
        import torch

        name = passed.spec.name
        if name not in tensors:
            raise ShapeError(
                f"{self.spec.name} wants the inputs "
                f"{sorted(one.spec.name for one in self.record.inputs)}, got {sorted(tensors)}."
            )
        given = tensors[name]
        tensor = given if isinstance(given, torch.Tensor) else torch.utils.dlpack.from_dlpack(given)
        layout = "channels last" if passed.channels_last else "contiguous"
        fits = tensor.is_contiguous(
            memory_format=torch.channels_last if passed.channels_last else torch.contiguous_format
        ) or (passed.channels_last and tensor.is_contiguous() and 1 in tensor.shape[1:2])
        dtype = str(tensor.dtype).removeprefix("torch.")
        if tensor.device != self._device or dtype != passed.dtype or not fits:
            raise ShapeError(
                f"{self.spec.name} wants {name} as {passed.dtype} on {self.device}, "
                f"{layout}; got {dtype} on {tensor.device} with strides "
                f"{tuple(tensor.stride())}. Convert it: session.formats tells how."
            )
        return tensor

    def close(self) -> None:
        """Free the weights; after a fork, nothing."""
        if not self.is_inherited:
            self._run = None


def _in_format(tensor: torch.Tensor, passed: PassedTensor) -> torch.Tensor:
    import torch

    if passed.channels_last:
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor.contiguous()


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


@dataclass(frozen=True, slots=True)
class InductorBackend:
    """PyTorch's ahead-of-time compiler."""

    name: str = "inductor"

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
        """The stamp in the package's metadata; kernels of a GPU have such files as well."""
        stamps = []
        for text in notes_from_archive(path, "_metadata.json"):
            try:
                table = strict_json(text)
            except StrictJsonError:
                continue
            found = table.get(FACTS_KEY) if isinstance(table, dict) else None
            stamps += [found] if isinstance(found, str) else []
        return stamps[0] if len(set(stamps)) == 1 else None

    def session_from_artifact(
        self,
        path: Path,
        spec: PartSpec,
        *,
        threads: int | None = None,
        device: str | None = None,
        options: Mapping[str, str] | None = None,
    ) -> Session:
        """Load a package.

        Raises:
            MissingExtra: torch is not installed.
            DamagedBundle: The file does not load.
            ForeignBundle: It was compiled for a GPU that is not here.
            SettingError: ``threads`` or an option is given, or ``device`` is of another kind than
                the package was compiled for.
        """
        checked_threads(threads)
        checked_options(self.name, options, {})
        if threads is not None:
            raise SettingError(
                "torch has one thread count for the whole process. "
                "Set it there (torch.set_num_threads) instead of per session."
            )
        return InductorSession(path, spec, device=device)


BACKEND = InductorBackend()
