"""How a process loads its segmenter: plain values that go to other processes."""

from __future__ import annotations

import os
from dataclasses import dataclass

from samforge.assembly import load
from samforge.core.devices import AUTO, CUDA
from samforge.core.errors import SettingError
from samforge.runtime import Segmenter


@dataclass(frozen=True, kw_only=True, slots=True)
class Opening:
    """A bundle, and where it runs."""

    bundle: str
    """Its folder."""
    digest: str
    """Of it: another one that took its place is refused."""
    device: str = AUTO
    """As ``samforge.load`` takes it."""
    threads: int | None = None
    """Processor threads; None takes the runtime's own choice."""

    def segmenter(self) -> Segmenter:
        """Load it.

        Raises:
            BundleError: It cannot be opened, or is another one by now.
        """
        return load(self.bundle, device=self.device, threads=self.threads, digest=self.digest)


def openings(
    bundle: str, digest: str, *, device: str, threads: int | None, jobs: int
) -> list[Opening]:
    """One for each process: they share the cores, or each has the next GPU.

    Args:
        bundle: Its folder.
        digest: Of it.
        device: ``cpu``, ``cuda`` (GPUs from the first on), one GPU by number, or ``auto``, which
            several processes cannot have.
        threads: Of each process, or None.
        jobs: How many.

    Raises:
        SettingError: Several processes are asked to share one GPU, or nobody says where they run.
    """
    if jobs > 1 and device == AUTO:
        raise SettingError(
            f"{bundle} is of a target that runs on processors and on GPUs, and {jobs} jobs have to "
            "know which. Give --device cpu, or --device cuda for a GPU each."
        )
    if jobs > 1 and device.startswith(f"{CUDA}:"):
        raise SettingError(
            f"{jobs} jobs want a device each, and {device} is one. Give --device cuda, which takes "
            f"cuda:0 to cuda:{jobs - 1}."
        )
    on_gpus = jobs > 1 and device == CUDA
    shared = threads or (max(1, (os.cpu_count() or 1) // jobs) if jobs > 1 else None)
    return [
        Opening(
            bundle=bundle,
            digest=digest,
            device=f"{CUDA}:{number}" if on_gpus else device,
            threads=None if on_gpus else shared,
        )
        for number in range(jobs)
    ]
