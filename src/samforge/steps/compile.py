"""Fused program -> package of torch's compiler, for the GPU or the processor at hand."""

from __future__ import annotations

import json

import torch

from samforge.backends.inductor.backend import package_from_exported
from samforge.measure.fidelity import rows
from samforge.steps.context import BuildContext, StepOutput
from samforge.steps.convert import compared_with_samples
from samforge.steps.facts import facts_of
from samforge.transform.export import exported_from_file
from samforge.transform.lower import Lowering, lower


def compile_part(context: BuildContext, name: str) -> StepOutput:
    """Lower a part to the recipe's precision, compile it and compare it with the part.

    Raises:
        ExportError: The compiler failed.
        OutOfMemory: The GPU has no room for it.
    """
    precision, spec = context.recipe.precision, context.spec(name)
    scales: dict[str, float] = {}
    if context.is_quantized(name):
        program = exported_from_file(context.path(context.smoothed(name)))
        scales = json.loads(context.path(context.scales(name)).read_text(encoding="utf-8"))
    else:
        program = exported_from_file(context.path(context.fused(name)))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        settings = Lowering.for_gpu(precision, scales)
    else:
        settings = Lowering(precision=precision, scales=scales)
    lowered = lower(program, spec, settings=settings, device=device)
    artifact = context.artifact(name)
    record = package_from_exported(
        lowered.program,
        spec,
        context.path(artifact),
        precision=precision,
        facts=facts_of(context, name),
    )
    figures = compared_with_samples(context, name, context.path(artifact))
    return StepOutput(
        outputs=(artifact,), figures=rows(figures), notes=(f"{name} runs on {record.processor}.",)
    )
