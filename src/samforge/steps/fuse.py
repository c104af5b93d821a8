"""``.pt2`` -> fused program: what moves data is equal, what reorders sums is close."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from samforge.core.files import atomic_write_json
from samforge.core.session import TensorSpec
from samforge.measure.fidelity import compare_outputs, rows
from samforge.steps.account import digests_of, fused_weights, settled
from samforge.steps.context import BuildContext, StepOutput, arrays, check_gate
from samforge.transform.export import exported_from_file, release, runs_of_exported, save_exported
from samforge.transform.fuse import fuse


def fuse_part(context: BuildContext, name: str) -> StepOutput:
    """Fuse a part for the recipe's target and compare it with the part in eager mode."""
    spec = context.spec(name)
    exported = exported_from_file(context.path(context.exported(name)))
    before = digests_of(exported)
    fused = fuse(exported, target=context.recipe.target, consume=True)
    artifact, report = context.fused(name), f"report/{name}/fusions.json"
    save_exported(fused.program, context.path(artifact))
    samples = [context.path(path) for path in context.samples(name)]
    answers = runs_of_exported(fused.program, spec, (_read(path, spec.inputs) for path in samples))
    figures = {
        words: compare_outputs(arrays(_read(path, spec.outputs)), arrays(answer))
        for words, path, answer in zip(context.sizes_in_words(name), samples, answers, strict=True)
    }
    account, counts = settled(
        context, "fuse", name, fused_weights(before, fused), tables=fused.program.constants
    )
    release([*fused.program.state_dict.values(), *fused.program.constants.values()])
    limit = context.recipe.gates.fuse_max_abs
    gates = check_gate("fuse", name, figures, "fuse_max_abs", limit)
    atomic_write_json(context.path(report), {"part": name, "fusions": fused.results})
    return StepOutput(
        outputs=(artifact, report, account), figures=(*rows(figures), counts), gates=gates
    )


def _read(path: Path, tensors: Iterable[TensorSpec]) -> dict[str, Tensor]:
    with np.load(path) as sample:
        return {tensor.name: torch.from_numpy(sample[tensor.name]) for tensor in tensors}
