"""Which TensorRT is installed, and all that differs between its flavours and versions."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from samforge.core import targets
from samforge.core.errors import MissingExtra

Version = tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Flavour:
    """One of the two products."""

    name: str
    """As in ``--target``; also the extra of pyproject that installs it."""
    title: str
    """Its name in messages."""
    module: str
    """Import name."""
    distributions: tuple[str, ...]
    """Packages that bring the module."""
    oldest: Version
    """First version that builds our graphs."""
    below: Version
    """First version nobody has looked at."""
    tool: str
    """Its command line program."""
    targets_generations: bool
    """Whether it builds for named compute capabilities, without a GPU of that kind."""
    keeps_timings: bool
    """Whether builds time kernels, so that a timing cache means something."""
    captures_graphs: bool
    """Whether it makes CUDA graphs by itself, so that we must not."""


TENSORRT = Flavour(
    name=targets.TENSORRT.name,
    title="TensorRT",
    module=targets.TENSORRT.module,
    distributions=targets.TENSORRT.distributions,
    oldest=(10, 13),
    below=(12, 0),
    tool="trtexec",
    targets_generations=False,
    keeps_timings=True,
    captures_graphs=False,
)
RTX = Flavour(
    name=targets.TENSORRT_RTX.name,
    title="TensorRT for RTX",
    module=targets.TENSORRT_RTX.module,
    distributions=targets.TENSORRT_RTX.distributions,
    oldest=(1, 7),
    below=(2, 0),
    tool="tensorrt_rtx",
    targets_generations=True,
    keeps_timings=False,  # "no-ops" since RTX 1.2, and deprecated
    captures_graphs=True,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Library:
    """An imported flavour."""

    flavour: Flavour
    """Which product it is."""
    trt: Any
    """The module."""
    version: str
    """Its full version: engines run on exactly this one."""

    @property
    def number(self) -> Version:
        """Major and minor version."""
        return version_number(self.version)

    @property
    def network_flags(self) -> int:
        """Strong typing: asked for before 11, the only way since."""
        flag = getattr(self.trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        return 0 if flag is None or self._always_strong else 1 << int(flag)

    @property
    def command_flags(self) -> tuple[str, ...]:
        """The same for the command line program."""
        if self.flavour is RTX or self._always_strong:
            return ()
        return ("--stronglyTyped",)

    @property
    def _always_strong(self) -> bool:
        return self.flavour is TENSORRT and self.number >= (11, 0)

    def generations(self) -> tuple[str, ...]:
        """Compute capabilities this version can name as targets: ``75``, ``89``, …"""
        if not self.flavour.targets_generations:
            return ()
        names = (str(name) for name in dir(self.trt.ComputeCapability))
        return tuple(sorted((n.removeprefix("SM") for n in names if n.startswith("SM")), key=int))


def library(flavour: Flavour) -> Library:
    """Import a flavour.

    Raises:
        MissingExtra: It is not installed, does not load, or is a version we do not know.
    """
    if find_spec(flavour.module) is None:
        raise MissingExtra(flavour.title, flavour.name)
    try:
        trt = import_module(flavour.module)
    except Exception as error:  # a loader error of any kind: missing libraries, wrong CUDA
        raise MissingExtra(f"A {flavour.title} that loads ({error})", flavour.name) from error
    found = str(getattr(trt, "__version__", "0.0"))
    if not flavour.oldest <= version_number(found) < flavour.below:
        raise MissingExtra(f"{wanted_versions(flavour)} (there is {found})", flavour.name)
    return Library(flavour=flavour, trt=trt, version=found)


def installed_version(flavour: Flavour) -> str | None:
    """Version of the installed package without importing it, or None."""
    for distribution in flavour.distributions:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return None


def wanted_versions(flavour: Flavour) -> str:
    """The versions we build with, in words."""
    oldest, below = (".".join(map(str, number)) for number in (flavour.oldest, flavour.below))
    return f"{flavour.title} {oldest} or newer, below {below},"


def version_number(text: str) -> Version:
    """Major and minor of a version text; what is no number counts as 0."""
    numbers = [int(part) if part.isdigit() else 0 for part in text.split(".")[:2]]
    return (*numbers, 0, 0)[:2]  # type: ignore[return-value]  # exactly two by then
