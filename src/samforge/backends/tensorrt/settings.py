"""How an engine is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from samforge.core.axes import AXES
from samforge.core.errors import SettingError
from samforge.core.targets import PRECISIONS


@dataclass(frozen=True, kw_only=True, slots=True)
class AxisRange:
    """Sizes of one dynamic axis that an engine takes."""

    min: int = 1
    """Smallest."""
    opt: int = 1
    """The one it is tuned for."""
    max: int = 1
    """Largest; memory at run time grows with it."""

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise SettingError(
                f"An axis wants 1 <= min <= opt <= max, got {self.min}, {self.opt}, {self.max}."
            )

    def __str__(self) -> str:
        return str(self.min) if self.min == self.max else f"{self.min} to {self.max}"


DEFAULT_AXES = {name: AxisRange(max=axis.engine) for name, axis in AXES.items()}
"""Sizes of the axes of our parts, tuned for one image and one prompt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSettings:
    """How an engine is built."""

    precision: str = "fp16"
    """Number format of the graph, one of ``PRECISIONS``: refuses GPUs that lack it."""
    compute_capabilities: tuple[str, ...] = ()
    """GPU generations it is for: ``89``; empty takes the GPU at hand."""
    axes: Mapping[str, AxisRange] = field(default_factory=lambda: dict(DEFAULT_AXES))
    """Sizes of each dynamic axis, by name."""
    workspace_gib: float | None = None
    """Most GPU memory a layer may use for itself; None leaves it to the library."""
    optimization_level: int | None = None
    """0 (quick build) to 5 (long search); None takes the library's 3."""
    timing_cache: Path | None = None
    """File that remembers timings of kernels across builds."""
    facts: str | None = None
    """What the engine says of itself in a bundle; see :mod:`samforge.core.facts`."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise SettingError(
                f"precision is '{self.precision}'. Precisions: {', '.join(PRECISIONS)}."
            )
        if self.workspace_gib is not None and not self.workspace_gib > 0:
            raise SettingError(f"workspace_gib wants more than 0, got {self.workspace_gib!r}.")
        level = self.optimization_level
        if level is not None and level not in range(6):
            raise SettingError(f"optimization_level wants 0 to 5, got {level!r}.")
