"""The architectures samforge knows, one entry each: which names are theirs, and how they load."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from samforge.core.errors import SettingError
from samforge.core.reference import META
from samforge.core.structure import unknown_names
from samforge.models import tiny
from samforge.models.dinov3 import loading as dinov3
from samforge.models.dinov3 import parts as dinov3_parts
from samforge.models.family import Model
from samforge.models.part import PartDef
from samforge.models.sam3 import loading as sam3
from samforge.models.sam3 import parts as sam3_parts
from samforge.models.sam3.family import Sam3
from samforge.models.tiny.stress import StressedSource


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """Which model is wanted."""

    name: str
    """As the user wrote it."""
    reference: str = META
    """Whose computation the parts of SAM 3 are. Of DINOv3 both compute the same."""
    image_size: int | None = None
    """Side in pixels; None keeps the model's own."""
    random_weights: bool = False
    """Use the architecture with random weights; nothing is downloaded."""
    seed: int = 0
    """Of the random weights."""
    tokenizer: Path | None = None
    """A ``tokenizers`` JSON, where the checkpoint has none."""
    tracker: bool = False
    """Load SAM 3 with its video tracker."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """One architecture."""

    name: str
    """As in a bundle's manifest."""
    claims: Callable[[str], bool]
    """Whether a name means one of its models, as far as names and local files tell; cheap."""
    load: Callable[[Request], Model]
    """Finds and checks the model, and refuses a name that means none."""
    parts: Mapping[str, PartDef[Any, Any]]
    """Definitions of its parts, by name."""


def _dinov3(request: Request) -> Model:
    if request.tokenizer is not None:
        raise SettingError(
            f"{request.name} takes no phrases: leave the tokenizer {request.tokenizer} out."
        )
    if request.tracker:
        raise SettingError(f"{request.name} has no tracker: leave it out.")
    return dinov3.checkpoint_from_name(
        request.name,
        image_size=request.image_size,
        random_weights=request.random_weights,
        seed=request.seed,
    )


def _sam3(request: Request) -> Model:
    if request.name == tiny.STRESSED:
        plain = sam3.checkpoint_from_name(
            tiny.NAME,
            reference=request.reference,
            image_size=request.image_size,
            tokenizer=request.tokenizer,
            tracker=request.tracker,
        )
        source = StressedSource(plain.source, seed=request.seed)
        return Sam3(replace(plain, name=request.name, source=source))
    return Sam3(
        sam3.checkpoint_from_name(
            request.name,
            reference=request.reference,
            image_size=request.image_size,
            random_weights=request.random_weights,
            seed=request.seed,
            tokenizer=request.tokenizer,
            tracker=request.tracker,
        )
    )


def _not_dinov3(name: str) -> bool:
    # A name on the Hugging Face Hub says nothing before its files are here: SAM 3's loading reads
    # them, and refuses what is no SAM 3.
    return not dinov3.is_dinov3(name)


FAMILIES: tuple[Family, ...] = (
    Family(
        name=dinov3_parts.FAMILY,
        claims=dinov3.is_dinov3,
        load=_dinov3,
        parts=dinov3_parts.DEFINITIONS,
    ),
    Family(name=sam3_parts.FAMILY, claims=_not_dinov3, load=_sam3, parts=sam3_parts.DEFINITIONS),
)
"""Every family; one of them claims a name."""
DEFINITIONS: Mapping[str, PartDef[Any, Any]] = {
    name: definition for family in FAMILIES for name, definition in family.parts.items()
}
"""Every part of every family by name: no two families share one."""


def family_of(name: str, families: Sequence[Family] = FAMILIES) -> Family:
    """Find the family that claims the name of a model.

    Args:
        name: As the user wrote it.
        families: Those to ask.

    Raises:
        SettingError: Several claim it, or none does.
    """
    found = [family for family in families if family.claims(name)]
    if len(found) != 1:
        known = ", ".join(family.name for family in found or families)
        told = "may be a model of" if found else "is no model of the known families:"
        raise SettingError(f"{name} {told} {known}. Name a folder or a file of one family.")
    return found[0]


def part_definition(name: str) -> PartDef[Any, Any]:
    """Find the definition of a part, of whatever family.

    Raises:
        SettingError: No family has such a part.
    """
    if problem := unknown_names([name], DEFINITIONS):
        raise SettingError(f"part is {problem}.")
    return DEFINITIONS[name]
