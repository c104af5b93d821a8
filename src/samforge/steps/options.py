"""Settings that a target's runtime needs for a precision."""

from __future__ import annotations

from samforge.core.recipe import Recipe


def options_of(recipe: Recipe, runtime: str) -> dict[str, str]:
    """Options of the backend, kept in the bundle's manifest and handed to every session."""
    if runtime == "openvino":
        # Its own default computes in bf16 where the processor can, whatever was asked for.
        return {"precision": "bf16" if recipe.precision == "bf16" else "fp32"}
    return {}
