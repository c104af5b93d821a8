"""What a build needs to know of a model, whatever its architecture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from samforge.core.images import ImageSpec
from samforge.core.session import PartSpec
from samforge.models.part import Part
from samforge.models.sources import WeightSource


@dataclass(frozen=True, kw_only=True, slots=True)
class TextAssets:
    """How a model reads phrases."""

    tokenizer: Path | None
    """A ``tokenizers`` JSON; None only with random weights."""
    context: int
    """Tokens in a row of ids."""
    eos_id: int
    """Token that closes every phrase, and fills up."""
    vocabulary: int
    """Number of tokens."""


class Model(Protocol):
    """A checkpoint and the parts that can be made from it."""

    @property
    def name(self) -> str:
        """As the user wrote it."""
        ...

    @property
    def family(self) -> str:
        """``sam3`` or ``dinov3``."""
        ...

    @property
    def image(self) -> ImageSpec:
        """How images are prepared for it."""
        ...

    @property
    def text(self) -> TextAssets | None:
        """How it reads phrases; None when it takes none."""
        ...

    @property
    def source(self) -> WeightSource:
        """Where its tensors come from."""
        ...

    @property
    def license_text(self) -> str:
        """Licence of the weights, or a notice that names it."""
        ...

    @property
    def part_names(self) -> tuple[str, ...]:
        """Every part of the family."""
        ...

    @property
    def default_parts(self) -> tuple[str, ...]:
        """What a bundle holds unless a recipe says otherwise."""
        ...

    def part(self, name: str) -> Part:
        """Compose one part and load its weights.

        Raises:
            SettingError: No such part.
            CheckpointKeysError: Weights are missing or of another shape.
        """
        ...

    def spec(self, name: str) -> PartSpec:
        """Interface of a part."""
        ...

    def inputs(self, name: str, sizes: Mapping[str, int], seed: int) -> dict[str, Tensor]:
        """Random inputs of a part: the right kind, without meaning."""
        ...

    def settings(self) -> dict[str, Any]:
        """Everything besides the weights that decides its graphs, as plain values."""
        ...

    def weight_count(self) -> int:
        """Numbers in all of its weights."""
        ...
