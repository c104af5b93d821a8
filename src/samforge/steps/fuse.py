"""``.pt2`` -> fused program: what moves data is equal, what reorders sums is close."""

from __future__ import annotations

import numpy as np
import torch

from samforge.core.files import atomic_write_json
from samforge.measure.fidelity import compare_outputs, rows
from samforge.steps.account import digests_of, fused_weights, settled
from samforge.steps.workshop import Made, Workshop, arrays, check_gate
from samforge.transform.export import exported_from_file, release, run_exported, save_exported
from samforge.transform.fuse import fuse


def fuse_part(shop: Workshop, name: str) -> Made:
    """Fuse a part for the recipe's target and compare it with the part in eager mode."""
    spec = shop.spec(name)
    exported = exported_from_file(shop.path(shop.exported(name)))
    before = digests_of(exported)
    fused = fuse(exported, target=shop.recipe.target, consume=True)
    artifact, report = shop.fused(name), f"report/{name}/fusions.json"
    save_exported(fused.program, shop.path(artifact))
    figures = {}
    for words, path in zip(shop.sizes_in_words(name), shop.samples(name), strict=True):
        with np.load(shop.path(path)) as sample:
            inputs = {tensor.name: torch.from_numpy(sample[tensor.name]) for tensor in spec.inputs}
            actual = arrays(run_exported(fused.program, spec, inputs))
            reference = {tensor.name: sample[tensor.name] for tensor in spec.outputs}
        figures[words] = compare_outputs(reference, actual)
    account, counts = settled(
        shop, "fuse", name, fused_weights(before, fused), tables=fused.program.constants
    )
    release([*fused.program.state_dict.values(), *fused.program.constants.values()])
    limit = shop.recipe.gates.fuse_max_abs
    gates = check_gate("fuse", name, figures, "fuse_max_abs", limit)
    atomic_write_json(shop.path(report), {"part": name, "fusions": fused.results})
    return Made(outputs=(artifact, report, account), figures=(*rows(figures), counts), gates=gates)
