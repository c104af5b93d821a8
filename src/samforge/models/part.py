"""A part: a stateless module with a fixed interface, ready for export."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from samforge.core.axes import Axis, sized
from samforge.core.capabilities import Capability
from samforge.core.errors import SettingError
from samforge.core.session import PartSpec, TensorSpec
from samforge.models.drawing import Draw, TokenIds

C = TypeVar("C")
"""Checkpoint of a family."""
T = TypeVar("T")
"""What the shapes of a family's tensors depend on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Input:
    """One input of a part, and how an example of it is made."""

    spec: TensorSpec
    """Name, type and shape."""
    draw: Draw
    """Draws an array of its kind."""

    def example(
        self, rng: np.random.Generator, sizes: Mapping[str, int], tokens: TokenIds
    ) -> Tensor:
        """Draw a tensor.

        Raises:
            SettingError: An axis has no size, or what is drawn is of another type.
        """
        name, wanted = self.spec.name, self.spec.dtype
        array = self.draw(rng, sized(self.spec.shape, sizes, name), tokens)
        if array.dtype != wanted:
            raise SettingError(
                f"{name} is {wanted}, and its example is drawn as {array.dtype}. "
                f"Give its definition what draws {wanted}."
            )
        return torch.from_numpy(array)


@dataclass(frozen=True, kw_only=True, slots=True)
class PartDef(Generic[C, T]):
    """All that differs between the parts of a family."""

    name: str
    """As in ``--part``."""
    build: Callable[[C, dict[str, Tensor]], nn.Module]
    """Composes the module, and adds the tensors of the checkpoint that it loaded by name."""
    inputs: Callable[[T], tuple[Input, ...]]
    """In the order of the module's arguments."""
    outputs: Callable[[T], tuple[TensorSpec, ...]]
    """In the order of the module's results."""
    axes: tuple[Axis, ...]
    """The dynamic axes of its inputs."""
    serves: Capability | None = None
    """The first capability that needs it; None for a part that works alone."""
    stays_half: bool = False
    """Whether a lowering to fp8 leaves it in bf16 whole, because it would gain too little."""
    half_in_engines: bool = False
    """Whether targets whose own compiler makes engines leave it in half in int8 and fp8 bundles."""

    def spec(self, tensors: T) -> PartSpec:
        """Interface of the part."""
        inputs = tuple(one.spec for one in self.inputs(tensors))
        return PartSpec(name=self.name, inputs=inputs, outputs=self.outputs(tensors))

    def limits(self) -> dict[str, tuple[int, int | None]]:
        """Smallest and largest size of each dynamic axis."""
        return {axis.name: (1, axis.most) for axis in self.axes}


def definition_of(
    name: str, definitions: Mapping[str, PartDef[C, T]], family: str
) -> PartDef[C, T]:
    """Find the definition of a part.

    Raises:
        SettingError: The family has no such part.
    """
    if name not in definitions:
        kind = "Its part" if len(definitions) == 1 else "Its parts"
        raise SettingError(f"{family} has no part '{name}'. {kind}: {', '.join(definitions)}.")
    return definitions[name]


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One piece of a model that is exported, compiled and run on its own."""

    spec: PartSpec
    """Names, types and shapes of inputs and outputs."""
    inputs: tuple[Input, ...] = ()
    """Definitions of its inputs; empty for a part that nobody draws examples of."""
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
    inputs: Sequence[Input],
    sizes: Mapping[str, int],
    *,
    vocabulary: int = 0,
    eos_id: int = 0,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Make random inputs of the right kind: each is drawn as its definition says.

    Args:
        inputs: Of the part, in the order of its arguments.
        sizes: Size of every dynamic axis.
        vocabulary: Token ids are drawn below it.
        eos_id: Closes every row of ids, so the text mask has something to find.
        seed: The same seed gives the same tensors.

    Returns:
        One tensor for each input, by name.

    Raises:
        SettingError: An axis has no size, or a definition draws another type than it declares.
    """
    rng = np.random.default_rng(seed)
    tokens = TokenIds(vocabulary=vocabulary, eos_id=eos_id)
    return {one.spec.name: one.example(rng, sizes, tokens) for one in inputs}
