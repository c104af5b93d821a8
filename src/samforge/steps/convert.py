"""``.pt2`` -> ONNX in the precision of the target, run by ONNX Runtime and compared."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np

from samforge.backends import backend_from_name
from samforge.measure.fidelity import TensorFidelity, compare_outputs, rows
from samforge.steps.workshop import Made, Workshop, check_gate
from samforge.transform.export import exported_from_file, release
from samforge.transform.onnx.convert import onnx_from_exported, release_model, save_onnx


def convert_part(shop: Workshop, name: str) -> Made:
    """Convert a part to ONNX; ONNX Runtime must give what the part gave."""
    exported = exported_from_file(shop.path(shop.fused(name)))
    model = onnx_from_exported(exported, shop.spec(name))
    artifact = shop.onnx(name)
    sides = save_onnx(model, shop.path(artifact))
    release_model(model)
    release([*exported.state_dict.values(), *exported.constants.values()])
    del model, exported
    gc.collect()
    figures = compared_with_samples(shop, name, shop.path(artifact), "onnxruntime")
    limit = shop.recipe.gates.onnx_max_abs
    gates = check_gate("onnx", name, figures, "onnx_max_abs", limit)
    return Made(
        outputs=(artifact, *(f"parts/{name}/{side.name}" for side in sides)),
        figures=rows(figures),
        gates=gates,
    )


def compared_with_samples(
    shop: Workshop, name: str, artifact: Path, backend: str
) -> dict[str, tuple[TensorFidelity, ...]]:
    """Run an artifact on the part's samples and compare with what the part gave in eager mode."""
    spec = shop.spec(name)
    session = backend_from_name(backend).session_from_artifact(artifact, spec)
    figures = {}
    for words, path in zip(shop.sizes_in_words(), shop.samples(name), strict=True):
        with np.load(shop.path(path)) as sample:
            # The reference is read after the run: at full size memory peaks in it.
            actual = session.run({tensor.name: sample[tensor.name] for tensor in spec.inputs})
            reference = {tensor.name: sample[tensor.name] for tensor in spec.outputs}
        figures[words] = compare_outputs(reference, actual)
    session.close()
    return figures
