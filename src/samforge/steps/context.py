"""What every step of a build works with: the recipe, the model and the folder."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from samforge.core.axes import LARGE_SIZES
from samforge.core.errors import FidelityError
from samforge.core.recipe import Recipe
from samforge.core.session import Array, PartSpec
from samforge.core.staging import staged_path
from samforge.core.targets import QUANTIZED, Target, stop_of, target_from_name
from samforge.measure.fidelity import TensorFidelity, worst
from samforge.models.families import part_definition
from samforge.models.family import Model
from samforge.steps.samples import sweep_of, told_apart

SMALL_IMAGE = 448
"""Up to this side in pixels steps are compared on batches too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepOutput:
    """What a step leaves behind."""

    outputs: tuple[str, ...]
    """Files in the staging folder; the artifact first, then its side files, then work files."""
    figures: tuple[Mapping[str, Any], ...]
    """Fidelity of every output tensor at every size it was compared at, or what it measured."""
    gates: Mapping[str, float] = field(default_factory=dict)
    """Limits that held, by their names in the recipe."""
    notes: tuple[str, ...] = ()
    """What a reader has to know: a slower way taken, a check that could not run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildContext:
    """What every step needs."""

    recipe: Recipe
    """What to build."""
    model: Model
    """What to build it from."""
    root: Path
    """The staging folder: where files are read and written."""
    parts: tuple[str, ...]
    """The parts that are built."""
    until: str | None = None
    """The stage to stop after, or None for the last."""

    @property
    def target(self) -> Target:
        """What the recipe builds for."""
        return target_from_name(self.recipe.target)

    @property
    def runs_on(self) -> Target:
        """The target that runs what is made: another than the recipe's where the build stops."""
        return stop_of(self.target, self.recipe.precision, self.until)

    @property
    def runtime(self) -> str:
        """Its name."""
        return self.runs_on.name

    def path(self, relative: str) -> Path:
        """Absolute path of a file in the staging folder; its parents are made."""
        return staged_path(self.root, relative)

    def sample_sizes(self, part: str) -> tuple[dict[str, int], ...]:
        """Sizes of a part's dynamic axes at which steps are compared."""
        if self.model.image.size > SMALL_IMAGE:
            return told_apart(LARGE_SIZES, self.spec(part))
        return sweep_of(self.recipe, self.spec(part))

    def spec(self, part: str) -> PartSpec:
        """Interface of a part."""
        return self.model.spec(part)

    def inputs(self, part: str, sizes: Mapping[str, int], seed: int) -> dict[str, Tensor]:
        """Random inputs of a part."""
        return self.model.inputs(part, sizes, self.recipe.seed + seed)

    def is_quantized(self, part: str) -> bool:
        """Whether this build quantizes a part."""
        return is_quantized(self.recipe, part)

    def exported(self, part: str) -> str:
        """The program of torch.export, bit for bit the part: later forms are made from it."""
        return f"parts/{part}/{part}.pt2"

    def fused(self, part: str) -> str:
        """The fused program."""
        return f"work/{part}/fused.pt2"

    def quantized(self, part: str) -> str:
        """The program with int8 Q/DQ."""
        return f"work/{part}/qdq.pt2"

    def smoothed(self, part: str) -> str:
        """The fused program with SmoothQuant folded in: what runtimes quantize by themselves."""
        return f"work/{part}/smoothed.pt2"

    def scales(self, part: str) -> str:
        """Scale of the FP8 input of each linear, by module path."""
        return f"work/{part}/scales.json"

    def onnx(self, part: str) -> str:
        """The ONNX graph in the precision of the target."""
        return f"parts/{part}/{part}.onnx"

    def artifact(self, part: str) -> str:
        """What the target runs."""
        target, precision = self.runs_on, self.recipe.precision
        # Where nothing follows the program, the exported one keeps its name beside another.
        another = not target.steps and self.is_quantized(part) and self.until is None
        return f"parts/{part}/{precision if another else part}.{target.suffix}"

    def samples(self, part: str) -> tuple[str, ...]:
        """Inputs and outputs of the part, one file for each of ``sample_sizes``."""
        count = len(self.sample_sizes(part))
        return tuple(f"work/{part}/sample-{index}.npz" for index in range(count))

    def sizes_in_words(self, part: str) -> tuple[str, ...]:
        """Each of ``sample_sizes``, for people."""
        return tuple(
            ", ".join(f"{axis} {size}" for axis, size in sizes.items())
            for sizes in self.sample_sizes(part)
        )


def collect_garbage(context: BuildContext) -> None:
    """Free what the last work of a large model left in cycles: gigabytes.

    Of a small one it would take a tenth of a build's time to look through all that stays.
    """
    if context.model.image.size > SMALL_IMAGE:
        gc.collect()


def is_quantized(recipe: Recipe, part: str) -> bool:
    """Whether builds of a recipe quantize a part; lowerings and engines leave some in half."""
    definition, target = part_definition(part), target_from_name(recipe.target)
    half = (target.lowered and definition.stays_half) or (
        target.engine and definition.half_in_engines
    )
    return recipe.precision in QUANTIZED and not half


def check_gate(
    step: str, part: str, figures: Mapping[str, tuple[TensorFidelity, ...]], gate: str, limit: float
) -> dict[str, float]:
    """Stop the build where a tensor strays too far.

    Returns:
        The gate and the limit that held.

    Raises:
        FidelityError: Names the tensor and both figures.
    """
    for words, group in figures.items():
        figure = worst(group)
        if figure.gated > limit:
            raise FidelityError(
                f"{step} of {part} at {words}: {figure.tensor} differs by {figure.max_abs:.3g} "
                f"(values up to {figure.scale:.3g}), the gate is {limit:g}. Nothing was published."
            )
    return {gate: limit}


def arrays(tensors: Mapping[str, Tensor]) -> dict[str, Array]:
    """Tensors as numpy arrays."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
