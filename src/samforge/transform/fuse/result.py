"""What a fusion is, and what it says about a program."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch.export import ExportedProgram

from samforge.core.targets import TARGET_NAMES
from samforge.transform.fuse.editor import GraphEditor


@dataclass(kw_only=True, slots=True)
class FusionCount:
    """What one fusion did to one editor."""

    fired: int = 0
    """Places that were rewritten."""
    left: list[str] = field(default_factory=list)
    """Places that looked like it and stayed, each with the reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fusion:
    """One rewriting of the graph."""

    name: str
    """In words with hyphens; how reports call it."""
    summary: str
    """What becomes what."""
    exact: bool
    """Whether it only moves data: the results are the same to the last bit. The others reorder
    arithmetic and stay within 1e-5 of it, relative."""
    apply: Callable[[GraphEditor], FusionCount]
    """Rewrites the editor."""
    targets: tuple[str, ...] = TARGET_NAMES
    """Where it helps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FusionResult:
    """What one fusion did to one program."""

    name: str
    """Of the fusion."""
    fired: int
    """Places that were rewritten."""
    left: tuple[str, ...]
    """Candidates that stayed as they were, each with the reason."""
    exact: bool
    """Whether it only moves data."""
    weights: tuple[str, ...] = ()
    """Tensors that it changed, or made others of, by their names before it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FusedProgram:
    """A rewritten program and what was done to it."""

    program: ExportedProgram
    """Same inputs, outputs and dynamic axes as before."""
    results: tuple[FusionResult, ...]
    """One a fusion, in the order they ran; those the target does not want are absent."""
    unread: tuple[str, ...] = ()
    """Tensors that no operator read before anything was fused: they are left out."""

    @property
    def exact(self) -> bool:
        """Whether the program gives the same results to the last bit."""
        return all(result.exact for result in self.results if result.fired)

    def rows(self) -> list[dict[str, object]]:
        """One row a fusion, ready for a table, a report or JSON."""
        return rows_from_results(self.results)


def rows_from_results(results: Iterable[FusionResult]) -> list[dict[str, object]]:
    """One row a fusion: its name, how often it fired, whether it is exact, what it left and why."""
    return [
        {
            "fusion": result.name,
            "fired": result.fired,
            "exact": result.exact,
            "left": list(result.left),
        }
        for result in results
    ]
