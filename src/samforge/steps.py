"""What each step of a build does to one part, and the comparison that proves it.

A step takes files that earlier steps left in the staging folder and leaves its own, so every one
of them can be resumed. The order is :mod:`samforge.pipeline`'s.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from samforge.backends import backend_from_name
from samforge.core.errors import FidelityError
from samforge.core.recipe import Recipe
from samforge.core.session import Array, PartSpec
from samforge.core.staging import Staging
from samforge.measure.fidelity import TensorFidelity, compare_outputs, rows, worst
from samforge.models.part import example_inputs
from samforge.models.sam3.checkpoint import Sam3Checkpoint
from samforge.models.sam3.parts import part_from_checkpoint, part_spec
from samforge.transform.export import (
    TRACED_SIZES,
    exported_from_file,
    exported_from_part,
    release,
    run_exported,
    save_exported,
)
from samforge.transform.onnx.convert import onnx_from_exported, release_model, save_onnx

SMALL_IMAGE = 448
"""Up to this side in pixels steps are compared on batches too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """What a step leaves behind."""

    outputs: tuple[str, ...]
    """Files in the staging folder; the artifact first, then its side files, then samples."""
    figures: tuple[Mapping[str, Any], ...]
    """Fidelity of every output tensor at every size it was compared at."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workshop:
    """What every step needs: the recipe, the checkpoint and the folder to work in."""

    recipe: Recipe
    """What to build."""
    checkpoint: Sam3Checkpoint
    """What to build it from."""
    staging: Staging
    """Where files are read and written."""

    @property
    def sample_sizes(self) -> tuple[dict[str, int], ...]:
        """Sizes of the dynamic axes at which steps are compared."""
        if self.checkpoint.image.size > SMALL_IMAGE:
            # Explicit attention over 5184 tokens takes 3.2 GiB an image: one is enough.
            return ({"batch": 1, "prompts": 2, "boxes": 1},)
        return (
            {"batch": 1, "prompts": 1, "boxes": 1},
            {"batch": 2, "prompts": 3, "boxes": 2},
        )

    def spec(self, name: str) -> PartSpec:
        """Interface of a part."""
        return part_spec(self.checkpoint.config, name)

    def inputs(self, name: str, sizes: Mapping[str, int], seed: int) -> dict[str, Tensor]:
        """Random inputs of a part."""
        return example_inputs(
            self.spec(name),
            sizes,
            vocabulary=self.checkpoint.config.text_config.vocab_size,
            eos_id=self.checkpoint.eos_id,
            seed=self.recipe.seed + seed,
        )


def export_part(shop: Workshop, name: str) -> Made:
    """Checkpoint -> part -> ``.pt2``; the file, read back, must equal the part exactly.

    Leaves the inputs and outputs of the comparison as samples for the steps behind it.
    """
    part = part_from_checkpoint(shop.checkpoint, name)
    exported = exported_from_part(part, shop.inputs(name, TRACED_SIZES, seed=0))
    references = {}
    for index, sizes in enumerate(shop.sample_sizes):
        inputs = shop.inputs(name, sizes, seed=index + 1)
        references[_in_words(sizes)] = (inputs, part(inputs))
    artifact = f"parts/{name}/{name}.pt2"
    save_exported(exported, shop.staging.path(artifact))
    # At full size there is no room for two copies of the weights.
    release([*part.module.parameters(), *part.module.buffers(), *exported.state_dict.values()])
    reloaded = exported_from_file(shop.staging.path(artifact))
    figures = {
        words: compare_outputs(_arrays(outputs), _arrays(run_exported(reloaded, part.spec, inputs)))
        for words, (inputs, outputs) in references.items()
    }
    release([*reloaded.state_dict.values(), *reloaded.constants.values()])
    _check_gate("export", name, figures, shop.recipe.gates.export_max_abs)
    samples = []
    for index, (inputs, outputs) in enumerate(references.values()):
        samples.append(f"work/{name}/sample-{index}.npz")
        arrays: dict[str, Any] = {**_arrays(inputs), **_arrays(outputs)}
        np.savez(shop.staging.path(samples[-1]), **arrays)
    return Made(outputs=(artifact, *samples), figures=rows(figures))


def convert_part(shop: Workshop, name: str) -> Made:
    """``.pt2`` -> ONNX; ONNX Runtime must give what the part gave."""
    spec = shop.spec(name)
    exported = exported_from_file(shop.staging.path(f"parts/{name}/{name}.pt2"))
    model = onnx_from_exported(exported, spec)
    artifact = f"parts/{name}/{name}.onnx"
    sides = save_onnx(model, shop.staging.path(artifact))
    release_model(model)
    release([*exported.state_dict.values(), *exported.constants.values()])
    del model, exported
    gc.collect()
    session = backend_from_name("onnxruntime").session_from_artifact(
        shop.staging.path(artifact), spec
    )
    figures = {}
    for index, sizes in enumerate(shop.sample_sizes):
        with np.load(shop.staging.path(f"work/{name}/sample-{index}.npz")) as sample:
            # The reference is read after the run: at full size memory peaks in it.
            actual = session.run({tensor.name: sample[tensor.name] for tensor in spec.inputs})
            reference = {tensor.name: sample[tensor.name] for tensor in spec.outputs}
        figures[_in_words(sizes)] = compare_outputs(reference, actual)
    session.close()
    _check_gate("onnx", name, figures, shop.recipe.gates.onnx_max_abs)
    return Made(
        outputs=(artifact, *(f"parts/{name}/{side.name}" for side in sides)), figures=rows(figures)
    )


def _check_gate(
    step: str, name: str, figures: Mapping[str, tuple[TensorFidelity, ...]], limit: float
) -> None:
    for words, group in figures.items():
        figure = worst(group)
        if figure.gated > limit:
            raise FidelityError(
                f"{step} of {name} at {words}: {figure.tensor} differs by {figure.max_abs:.3g} "
                f"(values up to {figure.scale:.3g}), the gate is {limit:g}. Nothing was published."
            )


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, Array]:
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}


def _in_words(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{axis} {size}" for axis, size in sizes.items())
