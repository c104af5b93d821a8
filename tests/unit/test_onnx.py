"""The ONNX graphs: readable interface, no operator a target stumbles over, the part's numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from samforge.backends import backend_from_name
from samforge.core.errors import ExportError, OutputError
from samforge.measure.fidelity import compare_outputs
from samforge.models.sam3.parts import PARTS
from samforge.transform.onnx import convert
from samforge.transform.onnx.operators import FORBIDDEN, check_operators, operator_counts

Make = Callable[..., Any]

EVERYWHERE = {
    *("Add", "Concat", "Gather", "LayerNormalization", "MatMul", "Mul", "Reshape", "Shape"),
    *("Slice", "Softmax", "Transpose", "Unsqueeze"),
}
VISION = {
    *("Conv", "ConvTranspose", "Div", "Exp", "Gelu", "Neg", "Pad", "ReduceMax", "ReduceSum"),
    *("Relu", "Squeeze", "Sub"),
}
TEXT = {"And", "Equal", "Gelu", "LessOrEqual", "Not", "ReduceMin", "Where"}
DETECTOR = {
    *("Abs", "Cast", "Clip", "Conv", "ConvTranspose", "Cos", "Div", "Expand", "Gemm"),
    *("InstanceNormalization", "Log", "Pad", "ReduceSum", "Relu", "Sigmoid", "Sign", "Sin"),
    *("Squeeze", "Sub", "Where"),
}
BOXES = {"And", "Ceil", "Einsum", "Equal", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Not"}
OPERATORS = {
    "vision": EVERYWHERE | VISION,
    "text": EVERYWHERE | TEXT,
    "detector": EVERYWHERE | DETECTOR,
    "detector_boxes": EVERYWHERE | DETECTOR | BOXES,
    "grounding": EVERYWHERE | VISION | TEXT | DETECTOR,
}
"""All that a graph may hold. What is new here has to be looked up for every target first."""


@pytest.fixture(scope="module")
def models(onnx_file: Make) -> Make:
    """A part's graph, read back from its file when it is first asked for."""
    return lru_cache(lambda name: ir.load(onnx_file(name)))


@pytest.mark.parametrize("name", PARTS)
def test_operators(models: Make, name: str) -> None:
    found = set(operator_counts(models(name)))
    assert found - OPERATORS[name] == set()
    assert not OPERATORS[name] & set(FORBIDDEN)
    assert {node.domain for node in models(name).graph.all_nodes()} == {""}
    dtypes = {v.dtype for node in models(name).graph.all_nodes() for v in node.outputs}
    assert dtypes <= {ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.BOOL}


@pytest.mark.parametrize("name", PARTS)
def test_interface(models: Make, part: Make, name: str) -> None:
    model, spec = models(name), part(name).spec
    assert model.opset_imports == {"": 20}
    for values, tensors in ((model.graph.inputs, spec.inputs), (model.graph.outputs, spec.outputs)):
        assert [value.name for value in values] == [tensor.name for tensor in tensors]
        for value, tensor in zip(values, tensors, strict=True):
            assert value.dtype is not None
            assert value.dtype.numpy() == np.dtype(tensor.dtype)
            assert value.shape is not None
            axes = [axis if isinstance(axis, int) else axis.value for axis in value.shape]
            assert axes == list(tensor.shape)


@pytest.mark.parametrize("name", PARTS)
def test_no_file_tells_about_this_machine(onnx_file: Make, name: str) -> None:
    content = onnx_file(name).read_bytes()
    places = {str(Path(__file__).parents[2]), str(Path.home()), str(onnx_file(name).parent)}
    places |= {str(Path(torch.__file__).parents[1]), "site-packages", "stack_trace"}
    assert [place for place in places if place.encode() in content] == []


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 3, 2), (4, 2, 1), (2, 5, 6)])
@pytest.mark.parametrize("name", PARTS)
def test_onnx_runtime_equals_the_part(
    part: Make, example: Make, onnx_file: Make, name: str, sizes: tuple[int, int, int]
) -> None:
    inputs = example(name, dict(zip(("batch", "prompts", "boxes"), sizes, strict=True)), seed=9)
    reference = {key: value.numpy() for key, value in part(name)(inputs).items()}
    session = backend_from_name("onnxruntime").session_from_artifact(
        onnx_file(name), part(name).spec
    )
    found = session.run({key: value.numpy() for key, value in inputs.items()})
    session.close()
    for figure in compare_outputs(reference, found):
        assert figure.max_abs <= 1e-4, figure


def test_side_file_round_trip(
    monkeypatch: pytest.MonkeyPatch,
    part: Make,
    example: Make,
    onnx_file: Make,
    tmp_path: Path,
) -> None:
    model = ir.load(onnx_file("text"))
    monkeypatch.setattr(convert, "INLINE_BYTES", 0)
    path = tmp_path / "text.onnx"
    assert convert.save_onnx(model, path) == (tmp_path / "text.onnx.data",)
    inline, side = onnx_file("text").stat().st_size, (tmp_path / "text.onnx.data").stat().st_size
    assert path.stat().st_size < inline / 2 < side
    # The graph names the file without its folder, so the two can move together.
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for file in (path, tmp_path / "text.onnx.data"):
        file.rename(moved / file.name)
    inputs = {key: value.numpy() for key, value in example("text", {"prompts": 3}).items()}
    backend = backend_from_name("onnxruntime")
    whole = backend.session_from_artifact(onnx_file("text"), part("text").spec).run(inputs)
    apart = backend.session_from_artifact(moved / "text.onnx", part("text").spec).run(inputs)
    assert all(np.array_equal(whole[name], apart[name]) for name in whole)


def test_small_weights_stay_inside(onnx_file: Make, tmp_path: Path) -> None:
    model = ir.load(onnx_file("text"))
    assert convert.save_onnx(model, tmp_path / "text.onnx") == ()
    assert [file.name for file in tmp_path.iterdir()] == ["text.onnx"]


@pytest.mark.parametrize("inline", [0, 2**30])
def test_a_file_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, onnx_file: Make, tmp_path: Path, inline: int
) -> None:
    model = ir.load(onnx_file("text"))
    monkeypatch.setattr(convert, "INLINE_BYTES", inline)
    with pytest.raises(OutputError, match="nowhere"):
        convert.save_onnx(model, tmp_path / "nowhere" / "text.onnx")


def graph_of(operator: str, *, domain: str = "", dtype: Any = ir.DataType.FLOAT) -> ir.Model:
    """A graph with one operator; it need not be valid beyond its names and types."""
    value = ir.val("rows", dtype=ir.DataType.FLOAT, shape=["batch", 4])
    node = ir.node(operator, [value], domain=domain)
    node.outputs[0].dtype = dtype
    graph = ir.Graph([value], node.outputs, nodes=[node], opset_imports={"": 20}, name="one")
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("operator", sorted(FORBIDDEN))
def test_a_forbidden_operator_is_refused(operator: str) -> None:
    with pytest.raises(ExportError) as error:
        check_operators(graph_of(operator), "vision")
    assert f"The ONNX graph of vision holds 1 x {operator} ({FORBIDDEN[operator]})." == str(
        error.value
    )


def test_each_reason_to_refuse_is_told() -> None:
    model = graph_of("CumSum")
    model.graph.append(ir.node("CumSum", [model.graph.inputs[0]]))
    model.graph.append(ir.node("aten_view", [model.graph.inputs[0]], domain="pkg.onnxscript"))
    model.graph.append(ir.node("DFT", [model.graph.inputs[0]]))
    model.graph[-1].outputs[0].dtype = ir.DataType.COMPLEX64
    with pytest.raises(ExportError) as error:
        check_operators(model, "detector")
    assert "2 x CumSum (" in str(error.value)
    assert "operators of the domains pkg.onnxscript (no runtime has them)" in str(error.value)
    assert "complex tensors (no runtime has them)" in str(error.value)


def test_operators_inside_of_branches_count() -> None:
    inner = graph_of("NonZero").graph
    outer = graph_of("Relu")
    branch = ir.node("Where", [outer.graph.inputs[0]])
    branch.attributes.add(ir.AttrGraph("body", inner))
    outer.graph.append(branch)
    with pytest.raises(ExportError, match="1 x NonZero"):
        check_operators(outer, "vision")


def test_complex_inputs_are_refused() -> None:
    model = graph_of("Relu")
    model.graph.inputs[0].dtype = ir.DataType.COMPLEX128
    with pytest.raises(ExportError, match="complex"):
        check_operators(model, "vision")


def test_an_ordinary_graph_passes() -> None:
    check_operators(graph_of("Relu"), "vision")
