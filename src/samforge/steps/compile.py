"""Fused program -> package of torch's compiler, for the GPU or the processor at hand."""

from __future__ import annotations

import json

import torch

from samforge.backends.inductor.backend import package_from_exported
from samforge.core.targets import QUANTIZED
from samforge.measure.fidelity import rows
from samforge.steps.convert import compared_with_samples
from samforge.steps.facts import facts_of
from samforge.steps.workshop import Made, Workshop
from samforge.transform.export import exported_from_file
from samforge.transform.lower import HALF_PARTS, Lowering, lower


def compile_part(shop: Workshop, name: str) -> Made:
    """Lower a part to the recipe's precision, compile it and compare it with the part.

    Raises:
        ExportError: The compiler failed.
        OutOfMemory: The GPU has no room for it.
    """
    precision, spec = shop.recipe.precision, shop.spec(name)
    scales: dict[str, float] = {}
    if precision in QUANTIZED and name not in HALF_PARTS:
        program = exported_from_file(shop.path(shop.smoothed(name)))
        scales = json.loads(shop.path(shop.scales(name)).read_text(encoding="utf-8"))
    else:
        program = exported_from_file(shop.path(shop.fused(name)))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        settings = Lowering.for_gpu(precision, scales)
    else:
        settings = Lowering(precision=precision, scales=scales)
    lowered = lower(program, spec, settings=settings, device=device)
    artifact = shop.artifact(name)
    record = package_from_exported(
        lowered.program,
        spec,
        shop.path(artifact),
        precision=precision,
        facts=facts_of(shop, name),
    )
    figures = compared_with_samples(shop, name, shop.path(artifact))
    return Made(
        outputs=(artifact,), figures=rows(figures), notes=(f"{name} runs on {record.processor}.",)
    )
