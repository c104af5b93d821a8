"""Checkpoint -> part -> ``.pt2``, equal to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np

from samforge.measure.fidelity import compare_outputs, rows
from samforge.steps.account import exported_weights, settled
from samforge.steps.facts import facts_of_exported
from samforge.steps.samples import sample_inputs
from samforge.steps.workshop import Made, Workshop, arrays, check_gate
from samforge.transform.export import (
    TRACED_SIZES,
    exported_from_file,
    exported_from_part,
    release,
    runs_of_exported,
    save_exported,
)


def export_part(shop: Workshop, name: str) -> Made:
    """Export a part; the file, read back, must equal the part exactly.

    Leaves the inputs and outputs of the comparison as samples for the steps behind it.
    """
    part = shop.model.part(name)
    exported = exported_from_part(part, shop.inputs(name, TRACED_SIZES, seed=0))
    references = []
    for index, sizes in enumerate(shop.sample_sizes(name)):
        inputs = sample_inputs(shop.model, name, sizes, shop.recipe.seed + index + 1)
        references.append((inputs, part(inputs)))
    artifact = shop.exported(name)
    save_exported(exported, shop.path(artifact), facts=facts_of_exported(shop, name))
    # At full size there is no room for two copies of the weights.
    release([*part.module.parameters(), *part.module.buffers(), *exported.state_dict.values()])
    reloaded = exported_from_file(shop.path(artifact))
    answers = runs_of_exported(reloaded, part.spec, (inputs for inputs, _ in references))
    figures = {
        words: compare_outputs(arrays(outputs), arrays(answer))
        for words, (_, outputs), answer in zip(
            shop.sizes_in_words(name), references, answers, strict=True
        )
    }
    weights = exported_weights(shop.model.source, part, reloaded)
    account, counts = settled(shop, "export", name, weights)
    release([*reloaded.state_dict.values(), *reloaded.constants.values()])
    limit = shop.recipe.gates.export_max_abs
    gates = check_gate("export", name, figures, "export_max_abs", limit)
    samples = shop.samples(name)
    for sample, (inputs, outputs) in zip(samples, references, strict=True):
        tensors: dict[str, Any] = {**arrays(inputs), **arrays(outputs)}
        np.savez(shop.path(sample), **tensors)
    return Made(
        outputs=(artifact, *samples, account), figures=(*rows(figures), counts), gates=gates
    )
