"""Which steps a recipe takes, in which order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from samforge.core.capabilities import POINTS, TRACKER_PARTS
from samforge.core.recipe import Recipe
from samforge.core.targets import QUANTIZED, Target, stop_of, target_from_name
from samforge.steps.calibrate import calibrate_parts
from samforge.steps.calibrate_tracker import calibrate_tracker
from samforge.steps.compile import compile_part
from samforge.steps.context import BuildContext, StepOutput, is_quantized
from samforge.steps.convert import convert_part
from samforge.steps.engine import engine_part
from samforge.steps.export import export_part
from samforge.steps.follow import follow_bundle
from samforge.steps.fuse import fuse_part
from samforge.steps.quantize import quantize_part
from samforge.steps.verify import verify_bundle

PartStep: TypeAlias = Callable[[BuildContext, str], StepOutput]
BundleStep: TypeAlias = Callable[[BuildContext], StepOutput]


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """What a step does, whichever part it does it to."""

    name: str
    """``export``, ``onnx``, …"""
    make: PartStep | BundleStep
    """Does it."""
    settings: tuple[str, ...] = ()
    """Fields of the recipe that decide its result, besides the model, the seed and the gates."""
    stamped: bool = False
    """Whether what it makes says which runtime it is for: another where a build stops early."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step, for one part or for all of them together."""

    kind: Kind
    """What it does."""
    part: str | None
    """The part it works on; None for the whole bundle."""

    def __str__(self) -> str:
        return self.kind.name if self.part is None else f"{self.kind.name}/{self.part}"


Chain: TypeAlias = tuple[Step, ...]
"""Steps that follow one another."""
Stage: TypeAlias = tuple[Chain, ...]
"""Chains that know nothing of one another; the next stage waits for all of them."""

EXPORT = Kind(name="export", make=export_part)
FUSE = Kind(name="fuse", make=fuse_part, settings=("target",))
CALIBRATE = Kind(name="calibrate", make=calibrate_parts, settings=("calibration", "quantization"))
CALIBRATE_TRACKER = Kind(
    name="calibrate-tracker",
    make=calibrate_tracker,
    settings=("calibration", "quantization"),
)
QUANTIZE = Kind(
    name="quantize", make=quantize_part, settings=("target", "precision", "quantization")
)
ONNX = Kind(name="onnx", make=convert_part, settings=("target", "precision"), stamped=True)
COMPILE = Kind(name="compile", make=compile_part, settings=("target", "precision"))
ENGINE = Kind(
    name="engine",
    make=engine_part,
    settings=("target", "precision", "engine", "compute_capabilities"),
)
AFTER = {kind.name: kind for kind in (ONNX, COMPILE, ENGINE)}
"""What can follow the fusion, by the names in the table of targets."""
VERIFY = Kind(name="verify", make=verify_bundle, settings=("target", "precision", "calibration"))
FOLLOW = Kind(name="follow", make=follow_bundle, settings=("target", "precision", "calibration"))


def stages(recipe: Recipe, parts: Sequence[str], *, until: str | None = None) -> tuple[Stage, ...]:
    """The steps of a recipe: stages in order, in each the chains that may run side by side."""
    before, after, together = _kinds(recipe, until)
    floating = [part for part in parts if not is_quantized(recipe, part)]
    planned: list[Stage] = []
    if recipe.precision in QUANTIZED and until != "export":
        planned += [_each(parts, before), ((Step(kind=CALIBRATE, part=None),),)]
        if set(TRACKER_PARTS) & set(parts) - set(floating):
            planned.append(((Step(kind=CALIBRATE_TRACKER, part=None),),))
        planned.append(
            tuple(_chain(part, after if part in floating else (QUANTIZE, *after)) for part in parts)
        )
    else:
        planned.append(_each(parts, (*before, *after)))
    if VERIFY in together and POINTS.among(parts):
        together = (*together, FOLLOW)
    return (*planned, *(((Step(kind=kind, part=None),),) for kind in together))


def _kinds(
    recipe: Recipe, until: str | None
) -> tuple[tuple[Kind, ...], tuple[Kind, ...], tuple[Kind, ...]]:
    """What is done to every part before and after quantization, and to all of them at the end."""
    target = target_from_name(recipe.target)
    stop_of(target, recipe.precision, until)  # refuses what this target's builds do not pass
    if until == "export":
        return (EXPORT,), (), ()
    after = tuple(AFTER[name] for name in target.steps[: _place(target, until)])
    if not after and recipe.precision == "fp32":
        return (EXPORT,), (), (VERIFY,)  # the exported program itself runs
    # In fp32 too: tensors are compared on random inputs, and black pictures are none of them.
    return (EXPORT, FUSE), after, (VERIFY,)


def _place(target: Target, until: str | None) -> int:
    return len(target.steps) if until is None else target.steps.index(until) + 1


def _each(parts: Sequence[str], kinds: Sequence[Kind]) -> Stage:
    return tuple(_chain(part, kinds) for part in parts)


def _chain(part: str, kinds: Sequence[Kind]) -> Chain:
    return tuple(Step(kind=kind, part=part) for kind in kinds)


def steps_of(planned: Sequence[Stage]) -> tuple[Step, ...]:
    """Every step in the order it is reported."""
    return tuple(step for stage in planned for chain in stage for step in chain)
