"""What a package of AOTInductor says of itself: made with it, and read without loading its code."""

from __future__ import annotations

import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from samforge.core.errors import DamagedBundle, ForeignBundle
from samforge.core.session import PartSpec, TensorSpec
from samforge.core.strict_json import strict_json

if TYPE_CHECKING:
    from torch.export import ExportedProgram

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
    """Compute capability of the GPU, ``9.0``, or of the processor as torch names it, ``AVX512``."""
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
        table = strict_json(text)
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


def record_from_program(program: ExportedProgram, spec: PartSpec, precision: str) -> PackageRecord:
    """Describe the package that a lowered program with example inputs becomes."""
    import torch

    examples = cast("tuple[Any, ...]", program.example_inputs)[0]
    device = examples[0].device
    results = [node.meta["val"] for node in next(iter(reversed(program.graph.nodes))).args[0]][
        -len(spec.outputs) :
    ]
    cuda = device.type == "cuda"
    capability = (
        ".".join(map(str, torch.cuda.get_device_capability(device)))
        if cuda
        else torch.backends.cpu.get_cpu_capability()
    )
    return PackageRecord(
        part=spec.name,
        device=device.type,
        processor=torch.cuda.get_device_name(device) if cuda else "the processor",
        capability=capability,
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


def record_from_package(path: Path) -> PackageRecord:
    """Read what a package says of itself.

    Raises:
        DamagedBundle: It is no whole package of samforge's.
    """
    reason = "it holds no metadata"
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if not name.endswith("_metadata.json"):
                    continue
                table = _table(archive.read(name))
                if table is not None:  # kernels of a GPU have such files as well
                    return PackageRecord.from_json(table[KEY])
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        reason = str(error)
    raise DamagedBundle(f"AOTInductor cannot load {path}: {reason}. Build it again.")


def _table(text: bytes) -> dict[str, Any] | None:
    """Metadata that holds our record."""
    try:
        table = strict_json(text.decode())
    except ValueError:
        return None
    return table if isinstance(table, dict) and KEY in table else None


def check_device(record: PackageRecord, path: Path, index: int = 0) -> None:
    """Refuse a package for a GPU or for instructions that are not here.

    Args:
        record: What the package says of itself.
        path: Where it lies.
        index: Number of the GPU that is to run it.

    Raises:
        ForeignBundle: With what the package wants and what is here.
    """
    import torch

    if record.device != "cuda":
        here = torch.backends.cpu.get_cpu_capability()
        if not _runs(record.capability, here):
            raise ForeignBundle(
                f"{path} was compiled for processors with {record.capability}, and this one has "
                f"{here}. Build the bundle again on this machine."
            )
        return
    wanted = f"{record.processor} (compute capability {record.capability})"
    if not torch.cuda.is_available():
        raise ForeignBundle(
            f"{path} was compiled for {wanted}, and torch {torch.__version__} sees no NVIDIA GPU "
            "here. Run it there, or build the bundle for --target onnxruntime."
        )
    count = torch.cuda.device_count()
    if index >= count:
        raise ForeignBundle(
            f"There is no cuda:{index} to run {path}: this machine has {count} GPU"
            f"{'s' if count > 1 else ''}, numbered from 0."
        )
    here = ".".join(map(str, torch.cuda.get_device_capability(index)))
    if here != record.capability:
        raise ForeignBundle(
            f"{path} was compiled for {wanted}, and here is {torch.cuda.get_device_name(index)} "
            f"(compute capability {here}). Build the bundle again on this GPU."
        )


def _runs(wanted: str, here: str) -> bool:
    """Whether a processor of one capability runs what was compiled for another."""
    steps = ("", "DEFAULT", "NO AVX", "AVX2", "AVX512")
    if wanted in steps and here in steps:
        return steps.index(wanted) <= steps.index(here)
    return wanted in ("", here)
