"""How the matrix products of a graph or an engine are computed, and whether one keeps the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from samforge.core.errors import EngineError

FORMATS = ("fp8", "int8", "fp16", "bf16", "fp32")
"""Number formats of matrix products, cheapest first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Computation:
    """Matrix products, convolutions and attentions, counted by the format of their inputs."""

    source: str
    """What was read: ``the graph``, ``the engine inspector``, …"""
    gemms: Mapping[str, int]
    """Matrix products outside fused attentions; an engine may merge several of a graph into one."""
    convolutions: Mapping[str, int]
    """Convolutions, transposed ones too."""
    attentions: int
    """Fused attentions; of a graph, those whose pattern is fused."""

    def __str__(self) -> str:
        parts = [f"{count} {name} products" for name, count in self.gemms.items()]
        parts += [f"{count} {name} convolutions" for name, count in self.convolutions.items()]
        return ", ".join([*parts, f"{self.attentions} fused attentions"])


def lost_computation(
    planned: Computation, found: Computation, *, apart: bool = False
) -> tuple[str, ...]:
    """Say where an engine computes in a wider format, or fuses less, than its graph planned.

    Args:
        planned: Of the graph that the engine was built from.
        found: Of the engine. Products can be fewer than planned, because products of one input are
            merged, but never more in a format that is not the cheapest planned.
        apart: Attentions were taken apart on purpose: fusing more than planned is a difference too.

    Returns:
        One sentence a loss; none when the plan was kept.
    """
    losses = []
    if found.attentions < planned.attentions:
        losses.append(
            f"{planned.attentions} attentions should be fused, {found.attentions} are: "
            "the others run as separate products around a softmax."
        )
    if apart and found.attentions > planned.attentions:
        losses.append(
            f"{planned.attentions} attentions should be fused, {found.attentions} are: those "
            "that were taken apart on purpose are fused again."
        )
    for kind, wanted, counted in (
        ("products", planned.gemms, found.gemms),
        ("convolutions", planned.convolutions, found.convolutions),
    ):
        formats = [name for name in FORMATS if wanted.get(name)]
        if kind == "products":
            losses += [
                f"{wanted[name]} {kind} should be in {name}, none is."
                for name in formats
                if not counted.get(name)
            ]
        cheapest = formats[0] if formats else FORMATS[-1]
        losses += [
            f"{counted[name]} {kind} run in {name}, {wanted.get(name, 0)} should."
            for name in FORMATS[FORMATS.index(cheapest) + 1 :]
            if counted.get(name, 0) > wanted.get(name, 0)
        ]
    return tuple(losses)


def check_computation(
    what: str, planned: Computation, found: Computation, *, apart: bool = False
) -> None:
    """Make sure that an engine keeps its graph's plan.

    Args:
        what: The engine, for the message: ``TensorRT 10.13 made of vision.onnx``.
        planned: Of the graph that it was built from.
        found: Of the engine.
        apart: As in :func:`lost_computation`.

    Raises:
        EngineError: Says each difference, both counts, and where the second comes from.
    """
    if losses := lost_computation(planned, found, apart=apart):
        raise EngineError(
            f"What {what} does not compute what the graph plans: {' '.join(losses)} Read from "
            f"{found.source}. Planned: {planned}. Found: {found}. Nothing was written."
        )
