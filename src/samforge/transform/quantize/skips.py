"""Patterns of a recipe against all parts of a build: one that matches nothing is a mistake."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch.export import ExportedProgram

from samforge.core.recipe import Quantization
from samforge.transform.quantize.pairs import norm_paths
from samforge.transform.quantize.patterns import check_choices, check_patterns
from samforge.transform.quantize.sites import OPERATORS, sites_from_graph


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerNames:
    """Names in one part that patterns can match."""

    multiplying: tuple[str, ...]
    """Module paths of linears, convolutions and matrix products."""
    norms: tuple[str, ...]
    """Module paths of norms."""


def names_from_program(program: ExportedProgram) -> LayerNames:
    """Read the names of a part, float and fused or not."""
    graph = program.module()
    paths = dict.fromkeys(site.path for site in sites_from_graph(graph))
    return LayerNames(multiplying=tuple(paths), norms=norm_paths(graph))


def check_skips(settings: Quantization, names: Mapping[str, LayerNames]) -> None:
    """Refuse a recipe with a pattern that matches nothing in any of its parts.

    Args:
        settings: The recipe's.
        names: Of every part that is built.

    Raises:
        SettingError: Names the pattern and the nearest names.
    """
    check_choices("quantization.skip_operators", settings.skip_operators, OPERATORS)
    check_patterns(
        "quantization.skip",
        settings.skip,
        {part: own.multiplying for part, own in names.items()},
    )
    check_patterns(
        "quantization.smooth_skip",
        (pattern if "/" in pattern else f"*/{pattern}" for pattern in settings.smooth_skip),
        {part: (*own.norms, *own.multiplying) for part, own in names.items()},
    )
