"""What each step stamps into the artifact it makes."""

from __future__ import annotations

from samforge.core.facts import Facts
from samforge.core.targets import TORCH
from samforge.steps.workshop import Workshop


def facts_of(shop: Workshop, part: str) -> str:
    """Facts of what the target runs, in the recipe's precision."""
    return _facts(shop, part, shop.runtime, shop.recipe.precision)


def facts_of_exported(shop: Workshop, part: str) -> str:
    """Facts of the exported program: float, and run by torch, whatever comes of it later."""
    return _facts(shop, part, TORCH.name, "fp32")


def _facts(shop: Workshop, part: str, target: str, precision: str) -> str:
    spec, text = shop.spec(part), shop.model.text
    return Facts(
        part=part,
        target=target,
        precision=precision,
        reference=shop.recipe.reference,
        inputs=spec.inputs,
        outputs=spec.outputs,
        image=shop.model.image,
        text=None if text is None else (text.context, text.eos_id),
    ).to_text()
