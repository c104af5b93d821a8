"""What is usable on this machine, and what installs the rest."""

from __future__ import annotations

from dataclasses import dataclass

from samforge.core.targets import TARGETS
from samforge.core.version import __version__
from samforge.workflows.machine import Machine, this_machine
from samforge.workflows.runtimes import PackageReport, RuntimeReport, packages_here, runtimes_here

BASE_RUNTIME = next(target.module for target in TARGETS.values() if target.extra is None)
"""Import name of what the base install has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """One machine as samforge finds it."""

    samforge: str
    """Version of samforge."""
    machine: Machine
    """Processor, memory, disk and GPUs."""
    runtimes: tuple[RuntimeReport, ...]
    """Every runtime that bundles can be built for."""
    packages: tuple[PackageReport, ...]
    """What steps and extras need besides."""

    @property
    def usable(self) -> bool:
        """Whether at least the runtime of the base install is."""
        return any(one.usable for one in self.runtimes if one.name == BASE_RUNTIME)


def environment() -> Environment:
    """Look at the machine, its runtimes and its packages; each runtime in a process of its own."""
    return Environment(
        samforge=__version__,
        machine=this_machine(),
        runtimes=runtimes_here(),
        packages=packages_here(),
    )
