"""What a graph file holds, whatever its format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from samforge.core.session import TensorSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightBytes:
    """All weights of one number format."""

    dtype: str
    """``float32``, ``int8``, …"""
    tensors: int
    """How many there are."""
    bytes: int
    """What they take."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExternalFile:
    """A file beside the graph that holds weights."""

    name: str
    """As the graph names it, relative to its folder."""
    bytes: int | None
    """Its size, or None when it is not there or outside the graph's folder."""
    inside: bool
    """False when it lies outside the graph's folder: runtimes refuse that."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """A rule of :mod:`samforge.transform.onnx.hazards` that fired on a graph."""

    rule: str
    """Id of the rule: ``cumsum-axes``."""
    severity: str
    """``wrong``, ``refused`` or ``slow``."""
    places: tuple[str, ...]
    """Where, in words."""
    explanation: str
    """What happens and what to do instead."""
    reference: str
    """The issue or page it is known from."""

    def __str__(self) -> str:
        return f"[{self.rule}] {self.severity}: {self.place}. {self.explanation} ({self.reference})"

    @property
    def place(self) -> str:
        """The first place, and how many more there are."""
        first, *rest = self.places
        return f"{first} and {len(rest)} more" if rest else first


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphSummary:
    """What one graph file holds."""

    kind: str
    """``ONNX`` or ``exported program``."""
    versions: Mapping[str, str]
    """Of the format, and of what wrote it."""
    inputs: tuple[TensorSpec, ...]
    """In order; dynamic axes by name."""
    outputs: tuple[TensorSpec, ...]
    """In order."""
    operators: Mapping[str, int]
    """How often each stands in the graph, most frequent first."""
    weights: tuple[WeightBytes, ...]
    """By number format, largest first."""
    external: tuple[ExternalFile, ...]
    """Weights kept beside the graph."""
    hazards: tuple[str, ...]
    """Operators that targets miscompile or refuse, with the reason."""
    findings: tuple[Finding, ...] = ()
    """Patterns that TensorRT miscompiles, refuses or runs slowly."""


def weights_by_type(weights: Iterable[tuple[str, int]]) -> tuple[WeightBytes, ...]:
    """Sum up weights given as number format and bytes."""
    sums: dict[str, tuple[int, int]] = {}
    for dtype, size in weights:
        tensors, total = sums.get(dtype, (0, 0))
        sums[dtype] = (tensors + 1, total + size)
    found = [WeightBytes(dtype=name, tensors=n, bytes=total) for name, (n, total) in sums.items()]
    return tuple(sorted(found, key=lambda one: -one.bytes))
