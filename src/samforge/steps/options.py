"""Settings that a target's runtime needs for a precision."""

from __future__ import annotations

from samforge.core.recipe import Recipe
from samforge.core.targets import Target


def options_of(recipe: Recipe, target: Target) -> dict[str, str]:
    """Options of the backend, kept in the bundle's manifest and handed to every session."""
    if target.arithmetic:
        return {"precision": _arithmetic(recipe.precision)}
    return {}


def _arithmetic(precision: str) -> str:
    """What OpenVINO computes in; its own default is bf16 wherever the processor has it."""
    if precision == "bf16":
        return "bf16"
    if precision != "int8":
        return "fp32"
    from samforge.backends.openvino import has_bf16

    # The rest of an int8 graph in bf16 was the fastest form measured (benchmarks/cpu_engines.py).
    return "int8-bf16" if has_bf16() else "int8"
