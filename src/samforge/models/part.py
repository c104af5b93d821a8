"""A part: a stateless module with a fixed interface, ready for export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from samforge.core.session import PartSpec, TensorSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One piece of a model that is exported, compiled and run on its own."""

    spec: PartSpec
    """Names, types and shapes of inputs and outputs."""
    module: nn.Module
    """In eval mode, float32; positional arguments and results in the order of ``spec``."""
    axis_limits: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)
    """Smallest and largest size of each dynamic axis; None is no upper limit."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """Tensors of the checkpoint that the module holds as they are: name there, name here."""
    folded: Mapping[str, str] = field(default_factory=dict)
    """Tensors of the checkpoint that it holds in another form or not at all: name there, reason."""

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the module eagerly on named tensors."""
        with torch.inference_mode():
            results = self.module(*(tensors[tensor.name] for tensor in self.spec.inputs))
        if isinstance(results, Tensor):
            results = (results,)
        return {
            tensor.name: result for tensor, result in zip(self.spec.outputs, results, strict=True)
        }


def held_as_they_are(module: nn.Module, loaded: Mapping[str, Tensor]) -> dict[str, str]:
    """Find tensors of a checkpoint in a composed module: by where they lie, not by their names.

    Args:
        module: Made of modules that took the tensors over, or of some of them.
        loaded: Tensors by their names in the checkpoint.

    Returns:
        Name in the module's state, by name in the checkpoint, of those that the module holds.
    """
    places = {tensor.data_ptr(): name for name, tensor in module.state_dict().items()}
    return {
        name: places[tensor.data_ptr()]
        for name, tensor in loaded.items()
        if tensor.data_ptr() in places
    }


def example_inputs(
    spec: PartSpec, sizes: Mapping[str, int], *, vocabulary: int, eos_id: int, seed: int = 0
) -> dict[str, Tensor]:
    """Make random inputs of the right kind: normal features, valid ids, boxes in the image.

    Args:
        spec: Interface of the part.
        sizes: Size of every dynamic axis.
        vocabulary: Token ids are drawn below it.
        eos_id: Closes every row of ids, so the text mask has something to find.
        seed: The same seed gives the same tensors.

    Returns:
        One tensor for each input, by name.
    """
    rng = np.random.default_rng(seed)
    return {tensor.name: _example(tensor, sizes, rng, vocabulary, eos_id) for tensor in spec.inputs}


def _example(
    tensor: TensorSpec,
    sizes: Mapping[str, int],
    rng: np.random.Generator,
    vocabulary: int,
    eos_id: int,
) -> Tensor:
    shape = tuple(sizes[axis] if isinstance(axis, str) else axis for axis in tensor.shape)
    if tensor.name == "input_ids":
        ids = rng.integers(0, max(1, vocabulary - 2), shape)
        ids[ids == eos_id] = 0
        for row in ids:
            length = int(rng.integers(2, shape[1]))
            row[length - 1 :] = eos_id
        return torch.from_numpy(ids)
    if tensor.name == "text_mask":
        lengths = rng.integers(2, shape[1], shape[0])
        return torch.from_numpy(np.arange(shape[1])[None] < lengths[:, None])
    if tensor.name == "boxes_cxcywh":
        size = rng.uniform(0.05, 0.5, (*shape[:-1], 2))
        centre = rng.uniform(size / 2, 1 - size / 2)
        return torch.from_numpy(np.concatenate([centre, size], -1).astype(np.float32))
    if tensor.name == "box_labels":
        labels = rng.integers(0, 2, shape)
        labels[..., 0] = 1
        if shape[-1] > 1:
            labels[..., -1][rng.random(shape[:-1]) < 0.5] = -10
        return torch.from_numpy(labels)
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
