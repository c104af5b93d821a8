"""AOTInductor: a part compiled ahead of time for one GPU generation, or for the processor.

A package is a ``.pt2`` archive with a shared library in it: it loads in seconds and compiles
nothing. Beside the interface's float32 arrays it takes tensors where they are, in the types the
package was compiled for, which is how the device runtime chains parts without copies.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from samforge.core.errors import (
    DamagedBundle,
    ExportError,
    ForeignBundle,
    MissingExtra,
    OutOfMemory,
    SettingError,
    ShapeError,
)
from samforge.core.session import (
    Array,
    PartSpec,
    Session,
    Tensors,
    TensorSpec,
    check_artifact,
    checked_options,
    checked_tensors,
)

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

SUFFIX = "aoti.pt2"
KEY = "samforge"
"""Our entry among the package's own metadata."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PassedTensor:
    """One tensor as a package takes or gives it."""

    spec: TensorSpec
    """As the part's interface has it."""
    dtype: str
    """As the package has it, for example ``bfloat16``."""
    channels_last: bool
    """Whether a (B, C, H, W) tensor is stored with its channels together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackageRecord:
    """What a package says of itself, read without loading its code."""

    part: str
    """Name of the part."""
    device: str
    """``cpu`` or ``cuda``."""
    processor: str
    """What it was compiled on, in words."""
    capability: str
    """Compute capability of the GPU, ``9.0``; empty for ``cpu``."""
    precision: str
    """As the recipe names it."""
    torch: str
    """Version it was compiled with."""
    inputs: tuple[PassedTensor, ...]
    """In the order of the part's arguments."""
    outputs: tuple[PassedTensor, ...]
    """In the order of the part's results."""

    def to_json(self) -> str:
        """Write the record."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> PackageRecord:
        """Read a record.

        Raises:
            ValueError, KeyError, TypeError: It is none.
        """
        table = json.loads(text)
        for side in ("inputs", "outputs"):
            table[side] = tuple(
                PassedTensor(
                    spec=TensorSpec(**{**one["spec"], "shape": tuple(one["spec"]["shape"])}),
                    dtype=one["dtype"],
                    channels_last=one["channels_last"],
                )
                for one in table[side]
            )
        return cls(**table)


def package_from_exported(
    program: ExportedProgram,
    spec: PartSpec,
    path: Path,
    *,
    precision: str,
    options: Mapping[str, Any] | None = None,
) -> PackageRecord:
    """Compile a lowered program for the device its example inputs are on.

    Args:
        program: With example inputs, on its device.
        spec: Interface of the part.
        path: Where to write, ending in ``.aoti.pt2``.
        precision: As the recipe names it, for the record.
        options: Of ``torch._inductor.config``; they hold during the compilation only.

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
    record = _record(program, spec, precision)
    settings = {
        **link_options(),
        **(options or {}),
        "aot_inductor.metadata": {KEY: record.to_json()},
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
    package with a second C++ library in it crashes while it loads (seen with torch 2.11 and g++ 13
    on a CUDA image without the development link). The runtime library serves just as well.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        return {}
    asked = [compiler, "-print-file-name=libstdc++.so"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    # The compiler answers with the bare name where it knows no such file.
    if Path(found).is_absolute():
        return {}
    return {"aot_inductor.custom_op_libs": [":libstdc++.so.6"]}


def record_from_package(path: Path) -> PackageRecord:
    """Read what a package says of itself.

    Raises:
        DamagedBundle: It is no whole package of samforge's.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith("_metadata.json"):
                    return PackageRecord.from_json(json.loads(archive.read(name))[KEY])
        reason = "it holds no metadata"
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        reason = str(error)
    raise DamagedBundle(f"AOTInductor cannot load {path}: {reason}. Build it again.")


class InductorSession:
    """Runs one package. Calls from several threads follow one another."""

    runtime = "inductor"

    def __init__(self, path: Path, spec: PartSpec) -> None:
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
        check_device(self.record, path)
        from torch._inductor import aoti_load_package

        self.device = torch.device(self.record.device)
        cuda = self.device.type == "cuda"
        try:
            # Threads take turns here: the runner's own bookkeeping breaks CUDA graphs.
            self._run: Any = aoti_load_package(str(path), run_single_threaded=True)
        except Exception as error:
            raise DamagedBundle(
                f"AOTInductor of torch {torch.__version__} cannot load {path}: {error}"
            ) from error
        self._lock = Lock()
        self.spec = spec
        self.processor = (
            f"{torch.cuda.get_device_name()} (cuda:{torch.cuda.current_device()})"
            if cuda
            else f"CPU, {torch.get_num_threads()} threads"
        )

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
            tensor = torch.from_numpy(array).to(self.device, getattr(torch, passed.dtype))
            placed[passed.spec.name] = _in_format(tensor, passed)
        results = self.run_tensors(placed)
        return {
            tensor.name: results[tensor.name]
            .to("cpu", getattr(torch, tensor.dtype))
            .contiguous()
            .numpy()
            for tensor in self.spec.outputs
        }

    def run_tensors(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Run the part once on tensors that are where and how the package wants them.

        Nothing is copied or converted; on a GPU the call returns before the work is done, and it
        may be captured in a CUDA graph.

        Raises:
            ShapeError: A name, type, device or memory format differs from the package's.
            OutOfMemory: The GPU has no room for so large a batch.
        """
        import torch

        if self._run is None:
            raise ShapeError(f"The session of {self.spec.name} is closed. Load it again.")
        inputs = [self._checked(tensors, passed) for passed in self.record.inputs]
        with self._lock, torch.inference_mode():
            run = self._run
            if run is None:
                raise ShapeError(f"The session of {self.spec.name} is closed. Load it again.")
            with memory_errors(self.spec.name, self.device, inputs[0].shape[0]):
                results = run(*inputs)
        if isinstance(results, torch.Tensor):
            results = (results,)
        return {
            tensor.name: result for tensor, result in zip(self.spec.outputs, results, strict=True)
        }

    def _checked(self, tensors: Mapping[str, torch.Tensor], passed: PassedTensor) -> torch.Tensor:
        import torch

        name = passed.spec.name
        if name not in tensors:
            raise ShapeError(
                f"{self.spec.name} wants the inputs "
                f"{sorted(one.spec.name for one in self.record.inputs)}, got {sorted(tensors)}."
            )
        tensor = tensors[name]
        layout = "channels last" if passed.channels_last else "contiguous"
        fits = tensor.is_contiguous(
            memory_format=torch.channels_last if passed.channels_last else torch.contiguous_format
        ) or (passed.channels_last and tensor.is_contiguous() and 1 in tensor.shape[1:2])
        dtype = str(tensor.dtype).removeprefix("torch.")
        if tensor.device.type != self.device.type or dtype != passed.dtype or not fits:
            raise ShapeError(
                f"{self.spec.name} wants {name} as {passed.dtype} on {self.device.type}, "
                f"{layout}; got {dtype} on {tensor.device.type} with strides "
                f"{tuple(tensor.stride())}. Use session.placed(...) to convert it."
            )
        return tensor

    def placed(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Move and convert tensors to how the package wants them."""
        import torch

        wanted = {passed.spec.name: passed for passed in self.record.inputs}
        return {
            name: _in_format(
                tensor.to(self.device, getattr(torch, wanted[name].dtype)), wanted[name]
            )
            for name, tensor in tensors.items()
        }

    def close(self) -> None:
        """Free the weights."""
        self._run = None


def check_device(record: PackageRecord, path: Path) -> None:
    """Refuse a package for a GPU that is not here.

    Raises:
        ForeignBundle: With what the package wants and what is here.
    """
    import torch

    if record.device != "cuda":
        return
    wanted = f"{record.processor} (compute capability {record.capability})"
    if not torch.cuda.is_available():
        raise ForeignBundle(
            f"{path} was compiled for {wanted}, and torch {torch.__version__} sees no NVIDIA GPU "
            "here. Run it there, or build the bundle for --target onnxruntime."
        )
    here = ".".join(map(str, torch.cuda.get_device_capability()))
    if here != record.capability:
        raise ForeignBundle(
            f"{path} was compiled for {wanted}, and here is {torch.cuda.get_device_name()} "
            f"(compute capability {here}). Build the bundle again on this GPU."
        )


class memory_errors:  # noqa: N801  # reads as a statement, like contextlib's
    """Turns a GPU's out-of-memory errors into :class:`OutOfMemory` with the batch that would fit.

    AOTInductor's C++ door gives a bare RuntimeError, so the allocator's own count decides.
    """

    def __init__(self, part: str, device: torch.device, batch: int) -> None:
        self.part, self.device, self.batch = part, device, batch

    def _allocator(self) -> tuple[int, int, int]:
        import torch

        stats = torch.cuda.memory_stats(self.device)
        return (
            int(stats.get("num_ooms", 0)),
            int(stats.get("allocated_bytes.all.current", 0)),
            int(stats.get("allocated_bytes.all.peak", 0)),
        )

    def __enter__(self) -> None:
        if self.device.type == "cuda":
            self._before = self._allocator()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self.device.type != "cuda" or error is None:
            return
        import torch

        failures, current, peak = self._allocator()
        if failures == self._before[0]:
            return
        free = torch.cuda.mem_get_info(self.device)[0]
        free += torch.cuda.memory_reserved(self.device) - current
        used = max(peak - self._before[1], 1)
        raise OutOfMemory(
            out_of_memory_message(
                self.part, torch.cuda.get_device_name(self.device), self.batch, free, used
            )
        ) from error


def out_of_memory_message(part: str, gpu: str, batch: int, free: int, used: int) -> str:
    """Say what did not fit and what would.

    Args:
        part: Name of the part.
        gpu: Name of the GPU.
        batch: Images, or phrases, of the call that failed.
        free: Bytes that were free for it.
        used: Bytes it had taken when it failed: what it needs is more.
    """
    # What was used so far is a lower bound of the need, so the share of it that would have fitted
    # is taken with a quarter to spare.
    fitting = int(batch * 0.75 * min(1.0, free / max(free, used)))
    fitting = min(fitting, batch - 1)
    advice = (
        f"A batch of {fitting} would fit." if fitting >= 1 else "Free memory of other programs."
    )
    return (
        f"{part} ran out of memory on {gpu} with a batch of {batch}: {free / 2**30:.1f} GiB were "
        f"free. {advice}"
    )


def _in_format(tensor: torch.Tensor, passed: PassedTensor) -> torch.Tensor:
    import torch

    if passed.channels_last:
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor.contiguous()


def _record(program: ExportedProgram, spec: PartSpec, precision: str) -> PackageRecord:
    import torch

    examples = cast("tuple[Any, ...]", program.example_inputs)[0]
    device = examples[0].device
    results = [node.meta["val"] for node in next(iter(reversed(program.graph.nodes))).args[0]][
        -len(spec.outputs) :
    ]
    cuda = device.type == "cuda"
    capability = torch.cuda.get_device_capability(device) if cuda else ()
    return PackageRecord(
        part=spec.name,
        device=device.type,
        processor=torch.cuda.get_device_name(device) if cuda else "the processor",
        capability=".".join(map(str, capability)),
        precision=precision,
        torch=torch.__version__,
        inputs=_passed(spec.inputs, examples),
        outputs=_passed(spec.outputs, results),
    )


def _passed(specs: tuple[TensorSpec, ...], tensors: Any) -> tuple[PassedTensor, ...]:
    import torch

    return tuple(
        PassedTensor(
            spec=spec,
            dtype=str(tensor.dtype).removeprefix("torch."),
            channels_last=tensor.ndim == 4
            and not tensor.is_contiguous()
            and tensor.is_contiguous(memory_format=torch.channels_last),
        )
        for spec, tensor in zip(specs, tensors, strict=True)
    )


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


@dataclass(frozen=True, slots=True)
class InductorBackend:
    """PyTorch's ahead-of-time compiler."""

    name: str = "inductor"
    artifact: str = SUFFIX
    extra: str | None = "build"

    def version(self) -> str | None:
        """Version of the installed package, or None."""
        try:
            return version("torch")
        except PackageNotFoundError:
            return None

    def session_from_artifact(
        self,
        path: Path,
        spec: PartSpec,
        *,
        threads: int | None = None,
        options: Mapping[str, str] | None = None,
    ) -> Session:
        """Load a package.

        Raises:
            MissingExtra: torch is not installed.
            DamagedBundle: The file does not load.
            ForeignBundle: It was compiled for a GPU that is not here.
            SettingError: ``threads`` or an option is given.
        """
        checked_options(self.name, options, {})
        if threads is not None:
            raise SettingError(
                "torch has one thread count for the whole process. "
                "Set it there (torch.set_num_threads) instead of per session."
            )
        return InductorSession(path, spec)


BACKEND = InductorBackend()
