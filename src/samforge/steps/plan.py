"""Which steps a recipe takes, in which order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from samforge.core.recipe import Recipe
from samforge.steps.convert import convert_part
from samforge.steps.export import export_part
from samforge.steps.fuse import fuse_part
from samforge.steps.workshop import Made, Workshop

PartStep: TypeAlias = Callable[[Workshop, str], Made]
BundleStep: TypeAlias = Callable[[Workshop], Made]


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step, for one part or for all of them together."""

    name: str
    """``export``, ``onnx``, …"""
    make: PartStep | BundleStep
    """Does it."""
    part: str | None
    """The part it works on; None for the whole bundle."""
    settings: tuple[str, ...] = ()
    """Fields of the recipe that decide its result, besides the model, the seed and the gates."""

    def __str__(self) -> str:
        return self.name if self.part is None else f"{self.name}/{self.part}"


Chain: TypeAlias = tuple[Step, ...]
"""Steps that follow one another."""
Stage: TypeAlias = tuple[Chain, ...]
"""Chains that know nothing of one another; the next stage waits for all of them."""

EXPORT = ("export", export_part, ())
FUSE = ("fuse", fuse_part, ("target",))
ONNX = ("onnx", convert_part, ("target", "precision"))
CHAINS: dict[str, tuple[tuple[str, PartStep, tuple[str, ...]], ...]] = {
    "torch": (EXPORT,),
    "onnxruntime": (EXPORT, FUSE, ONNX),
}


def stages(recipe: Recipe, parts: Sequence[str]) -> tuple[Stage, ...]:
    """The steps of a recipe: stages in order, in each the chains that may run side by side."""
    chain = CHAINS[recipe.target]
    return (
        tuple(
            tuple(
                Step(name=name, make=make, part=part, settings=settings)
                for name, make, settings in chain
            )
            for part in parts
        ),
    )


def steps_of(planned: Sequence[Stage]) -> tuple[Step, ...]:
    """Every step in the order it is reported."""
    return tuple(step for stage in planned for chain in stage for step in chain)
