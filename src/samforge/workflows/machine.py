"""What this machine has: processor, memory, disk, NVIDIA GPUs."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

GIB = 1 << 30

# What decides the speed of int8 and half precision: x86 first, then Arm.
_FEATURES = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_bf16", "amx_int8"),
    *("asimd", "asimddp", "i8mm", "bf16", "sve"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One NVIDIA GPU, as nvidia-smi sees it."""

    name: str
    """For example ``NVIDIA L4``."""
    memory_gib: float
    """All of it, used or not."""
    driver: str
    """Version of the driver."""
    compute_capability: str
    """For example ``8.9``: decides which engines run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """The hardware and the system."""

    system: str
    """Operating system and its release."""
    python: str
    """Version of this Python."""
    processor: str
    """Name of the processor."""
    cores: int
    """Logical cores this process may use."""
    features: tuple[str, ...]
    """Instruction sets that matter here, by their names in /proc/cpuinfo."""
    memory_gib: float | None
    """Memory, or None where the system does not tell."""
    memory_free_gib: float | None
    """Memory that programs can still have, or None."""
    disk_free_gib: float
    """Free space where the command runs."""
    gpus: tuple[Gpu, ...]
    """NVIDIA GPUs."""
    gpu_problem: str | None
    """Why no GPU could be asked for, if nvidia-smi is there and fails."""


def this_machine() -> Machine:
    """Look at the machine; only nvidia-smi is started."""
    information = _processor_information(_text_of(Path("/proc/cpuinfo")))
    memory = _memory_kib(_text_of(Path("/proc/meminfo")))
    gpus, problem = _gpus()
    return Machine(
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        processor=information.get("model name") or platform.processor() or platform.machine(),
        cores=_cores(),
        features=features_from_cpuinfo(information),
        memory_gib=_gib(memory.get("MemTotal")),
        memory_free_gib=_gib(memory.get("MemAvailable")),
        disk_free_gib=round(shutil.disk_usage(Path.cwd()).free / GIB, 1),
        gpus=gpus,
        gpu_problem=problem,
    )


def features_from_cpuinfo(information: dict[str, str]) -> tuple[str, ...]:
    """Pick the instruction sets that matter from the fields of one processor."""
    flags = (information.get("flags") or information.get("Features") or "").split()
    return tuple(feature for feature in _FEATURES if feature in flags)


def gpus_from_csv(text: str) -> tuple[Gpu, ...]:
    """Read nvidia-smi's lines of name, memory in MiB, driver and compute capability."""
    rows = [
        [cell.strip() for cell in line.split(",")] for line in text.splitlines() if line.strip()
    ]
    return tuple(
        Gpu(
            name=name,
            memory_gib=round(float(memory) / 1024, 1),
            driver=driver,
            compute_capability=capability,
        )
        for name, memory, driver, capability in rows
    )


def _gpus() -> tuple[tuple[Gpu, ...], str | None]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return (), None
    query = "--query-gpu=name,memory.total,driver_version,compute_cap"
    try:
        run = subprocess.run(
            [tool, query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
        return gpus_from_csv(run.stdout), None
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return (), f"nvidia-smi is there and does not answer: {error}"


def _processor_information(cpuinfo: str) -> dict[str, str]:
    first = cpuinfo.partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _memory_kib(meminfo: str) -> dict[str, int]:
    pairs = (line.partition(":") for line in meminfo.splitlines())
    return {key: int(value.split()[0]) for key, _, value in pairs if value.split()}


def _gib(kib: int | None) -> float | None:
    return None if kib is None else round(kib / (1 << 20), 1)


def _cores() -> int:
    # A container or taskset may allow fewer than the machine has.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def jobs_for(model: str) -> int:
    """Parts of a model to work on side by side, where nobody says."""
    from samforge.models import tiny

    # Two parts of these fit into any memory. Of SAM 3's, one can take several GiB.
    return 2 if model in tiny.NAMES and (os.cpu_count() or 1) > 1 else 1
