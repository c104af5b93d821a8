"""SAM 3 as builds see it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from samforge.core.images import ImageSpec
from samforge.core.session import PartSpec
from samforge.models.family import TextAssets
from samforge.models.part import Part, example_inputs
from samforge.models.sam3.checkpoint import Sam3Checkpoint, state_shapes
from samforge.models.sam3.parts import (
    DEFAULT_PARTS,
    FAMILY,
    PARTS,
    TRACKER_PARTS,
    part_from_checkpoint,
    part_inputs,
    part_spec,
)
from samforge.models.sam3.tracker.modules import tracker_shapes
from samforge.models.sources import WeightSource


@dataclass(frozen=True, slots=True)
class Sam3:
    """A SAM 3 checkpoint and the parts that can be made from it."""

    checkpoint: Sam3Checkpoint
    family: str = FAMILY

    @property
    def part_names(self) -> tuple[str, ...]:
        """Every part that it has."""
        return PARTS + self._of_tracker

    @property
    def default_parts(self) -> tuple[str, ...]:
        """What a bundle holds unless a recipe says otherwise."""
        return DEFAULT_PARTS + self._of_tracker

    @property
    def _of_tracker(self) -> tuple[str, ...]:
        return () if self.checkpoint.tracker is None else TRACKER_PARTS

    @property
    def name(self) -> str:
        """As the user wrote it."""
        return self.checkpoint.name

    @property
    def image(self) -> ImageSpec:
        """How images are prepared for it."""
        return self.checkpoint.image

    @property
    def text(self) -> TextAssets:
        """How it reads phrases."""
        return TextAssets(
            tokenizer=self.checkpoint.tokenizer,
            context=self.checkpoint.context,
            eos_id=self.checkpoint.eos_id,
            vocabulary=self.checkpoint.config.text_config.vocab_size,
        )

    @property
    def source(self) -> WeightSource:
        """Where its tensors come from."""
        return self.checkpoint.source

    @property
    def license_text(self) -> str:
        """Licence of the weights, or a notice that names it."""
        return self.checkpoint.license_text

    def part(self, name: str) -> Part:
        """Compose one part and load its weights."""
        return part_from_checkpoint(self.checkpoint, name)

    def spec(self, name: str) -> PartSpec:
        """Interface of a part."""
        own = self.checkpoint
        return part_spec(own.config, name, own.reference, own.tracker)

    def inputs(self, name: str, sizes: Mapping[str, int], seed: int) -> dict[str, Tensor]:
        """Random inputs of a part."""
        own = self.checkpoint
        return example_inputs(
            part_inputs(own.config, name, own.reference, own.tracker),
            sizes,
            vocabulary=self.text.vocabulary,
            eos_id=own.eos_id,
            seed=seed,
        )

    def settings(self) -> dict[str, Any]:
        """Everything besides the weights that decides its graphs."""
        own = self.checkpoint
        settings = {
            "reference": own.reference,
            "config": own.config.to_dict(),
            "eos_id": own.eos_id,
        }
        return settings if own.tracker is None else settings | {"tracker": own.tracker.to_dict()}

    def weight_count(self) -> int:
        """Numbers in all of its weights."""
        own = self.checkpoint
        shapes = state_shapes(own.config)
        if own.tracker is not None:
            shapes |= tracker_shapes(own.tracker, own.config)
        return sum(math.prod(shape) for shape in shapes.values())
