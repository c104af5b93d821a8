"""Checkpoint -> part -> ``.pt2``, equal to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np

from samforge.core.axes import TRACED_SIZES
from samforge.measure.fidelity import compare_outputs, rows
from samforge.steps.account import exported_weights, settled
from samforge.steps.context import BuildContext, StepOutput, arrays, check_gate
from samforge.steps.facts import facts_of_exported
from samforge.steps.samples import sample_inputs
from samforge.transform.export import (
    exported_from_file,
    exported_from_part,
    release,
    runs_of_exported,
    save_exported,
)


def export_part(context: BuildContext, name: str) -> StepOutput:
    """Export a part; the file, read back, must equal the part exactly.

    Leaves the inputs and outputs of the comparison as samples for the steps behind it.
    """
    part = context.model.part(name)
    exported = exported_from_part(part, context.inputs(name, TRACED_SIZES, seed=0))
    references = []
    for index, sizes in enumerate(context.sample_sizes(name)):
        inputs = sample_inputs(context.model, name, sizes, context.recipe.seed + index + 1)
        references.append((inputs, part(inputs)))
    artifact = context.exported(name)
    save_exported(exported, context.path(artifact), facts=facts_of_exported(context, name))
    # At full size there is no room for two copies of the weights.
    release([*part.module.parameters(), *part.module.buffers(), *exported.state_dict.values()])
    reloaded = exported_from_file(context.path(artifact))
    answers = runs_of_exported(reloaded, part.spec, (inputs for inputs, _ in references))
    figures = {
        words: compare_outputs(arrays(outputs), arrays(answer))
        for words, (_, outputs), answer in zip(
            context.sizes_in_words(name), references, answers, strict=True
        )
    }
    weights = exported_weights(context.model.source, part, reloaded)
    account, counts = settled(context, "export", name, weights)
    release([*reloaded.state_dict.values(), *reloaded.constants.values()])
    limit = context.recipe.gates.export_max_abs
    gates = check_gate("export", name, figures, "export_max_abs", limit)
    samples = context.samples(name)
    for sample, (inputs, outputs) in zip(samples, references, strict=True):
        tensors: dict[str, Any] = {**arrays(inputs), **arrays(outputs)}
        np.savez(context.path(sample), **tensors)
    return StepOutput(
        outputs=(artifact, *samples, account), figures=(*rows(figures), counts), gates=gates
    )
