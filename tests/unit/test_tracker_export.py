"""The tracker's parts as exported programs and as ONNX graphs, with all their dynamic axes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch

from samforge.backends import backend_from_name
from samforge.core.axes import AXES
from samforge.measure.fidelity import compare_outputs
from samforge.models.part import example_inputs
from samforge.models.sam3.parts import TRACKER_PARTS
from samforge.transform.export import exported_from_part, run_exported
from samforge.transform.lower import Lowering, lower
from samforge.transform.lower.program import interface_dtype
from samforge.transform.onnx.convert import onnx_from_exported, save_onnx
from samforge.transform.onnx.hazards import lint

Make = Callable[..., Any]

TRACED = {"batch": 2, "objects": 3, "memories": 4, "pointers": 5, "points": 6}
"""All different and above 1."""
SIZES = (
    {"batch": 1, "objects": 1, "memories": 1, "pointers": 1, "points": 1},
    {"batch": 3, "objects": 7, "memories": 10, "pointers": 20, "points": 16},
    {"batch": 2, "objects": 64, "memories": 7, "pointers": 16, "points": 2},
)
SLOW = ("vision", "tracking_decoder", "mask_prompt")
"""Their operators stand in the graphs of ``vision`` and ``point_decoder``, too."""
# Both memory encoders are one module, with its steps in another order.
CONVERTED = ("vision", *(name for name in TRACKER_PARTS if name != "memory_encoder_text"))


@pytest.fixture(scope="module")
def exported(tracker_part: Make) -> Callable[[str], Any]:
    """A part's program, made once."""
    made: dict[str, Any] = {}

    def make(name: str) -> Any:
        if name not in made:
            part = tracker_part(name)
            inputs = example_inputs(part.inputs, TRACED)
            made[name] = exported_from_part(part, inputs)
        return made[name]

    return make


@pytest.mark.parametrize("name", CONVERTED)
def test_exported_equals_eager(tracker_part: Make, exported: Make, name: str) -> None:
    part, program = tracker_part(name), exported(name)
    ranges = {str(symbol): limits for symbol, limits in program.range_constraints.items()}
    nodes = {node.name: node for node in program.graph.nodes}
    for spec, key in zip(part.spec.inputs, program.graph_signature.user_inputs, strict=True):
        for wanted, found in zip(spec.shape, nodes[key].meta["val"].shape, strict=True):
            if isinstance(wanted, str):
                most = AXES[wanted].most
                assert ranges[str(found)].lower == 1
                assert most is None or ranges[str(found)].upper == most
    for sizes in SIZES:
        inputs = example_inputs(part.inputs, sizes, seed=sizes["objects"])
        eager, found = part(inputs), run_exported(program, part.spec, inputs)
        for tensor in part.spec.outputs:
            shape = tuple(sizes[a] if isinstance(a, str) else a for a in tensor.shape)
            assert found[tensor.name].shape == shape
            assert str(found[tensor.name].dtype) == f"torch.{tensor.dtype}"
            assert (eager[tensor.name] - found[tensor.name]).abs().max() == 0, tensor.name


@pytest.mark.parametrize("name", ["memory_encoder", "memory_attention"])
def test_lowered_for_a_gpu_it_keeps_its_axes(tracker_part: Make, exported: Make, name: str) -> None:
    """A program's own limits stand in its second tracing too: up to 64 objects, from 1 on."""
    part = tracker_part(name)
    lowered = lower(exported(name), part.spec, settings=Lowering(precision="bf16")).program
    ranges = {str(symbol): limits for symbol, limits in lowered.range_constraints.items()}
    assert (1, 64) in {(limits.lower, limits.upper) for limits in ranges.values()}
    for sizes in SIZES[:2]:
        inputs = example_inputs(part.inputs, sizes, seed=3)
        wanted = part(inputs)
        given = [
            tensor.to(interface_dtype(one, Lowering(precision="bf16")))
            for one, tensor in zip(part.spec.inputs, inputs.values(), strict=True)
        ]
        (found,) = lowered.module()(*given)
        (name_of,) = wanted
        cosine = torch.cosine_similarity(found.float().flatten(), wanted[name_of].flatten(), dim=0)
        assert cosine > 0.99


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in CONVERTED],
)
def test_onnx_runtime_equals_the_part(
    tracker_part: Make, exported: Make, tmp_path: Path, name: str
) -> None:
    part = tracker_part(name)
    model = onnx_from_exported(exported(name), part.spec)
    assert lint(model) == ()
    dtypes = {value.dtype for node in model.graph.all_nodes() for value in node.outputs}
    rounding = {ir.DataType.BFLOAT16} if name == "memory_attention" else set()
    assert dtypes <= {ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.BOOL} | rounding
    for values, tensors in (
        (model.graph.inputs, part.spec.inputs),
        (model.graph.outputs, part.spec.outputs),
    ):
        for value, tensor in zip(values, tensors, strict=True):
            assert value.name == tensor.name
            assert value.shape is not None
            axes = [axis if isinstance(axis, int) else axis.value for axis in value.shape]
            assert axes == list(tensor.shape)
    path = tmp_path / f"{name}.onnx"
    save_onnx(model, path)
    session = backend_from_name("onnxruntime").session_from_artifact(path, part.spec)
    for sizes in SIZES[:2]:
        inputs = example_inputs(part.inputs, sizes, seed=5)
        wanted = {key: value.numpy() for key, value in part(inputs).items()}
        found = session.run({key: value.numpy() for key, value in inputs.items()})
        for figure in compare_outputs(wanted, found):
            assert figure.gated <= 1e-4, figure
    session.close()
