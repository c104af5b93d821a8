"""What each step stamps into the artifact it makes."""

from __future__ import annotations

from samforge.core.facts import Facts
from samforge.core.targets import TORCH
from samforge.steps.context import BuildContext


def facts_of(context: BuildContext, part: str) -> str:
    """Facts of what the target runs, in the recipe's precision."""
    return _facts(context, part, context.runtime, context.recipe.precision)


def facts_of_exported(context: BuildContext, part: str) -> str:
    """Facts of the exported program: float, and run by torch, whatever comes of it later."""
    return _facts(context, part, TORCH.name, "fp32")


def _facts(context: BuildContext, part: str, target: str, precision: str) -> str:
    spec, text = context.spec(part), context.model.text
    return Facts(
        part=part,
        target=target,
        precision=precision,
        reference=context.recipe.reference,
        inputs=spec.inputs,
        outputs=spec.outputs,
        image=context.model.image,
        text=None if text is None else (text.context, text.eos_id),
    ).to_text()
