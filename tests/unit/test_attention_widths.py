"""Values that are narrower than queries are widened by zeros, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from samforge.transform.onnx.attention_pattern import attentions
from samforge.transform.onnx.attention_widths import widen_values
from samforge.transform.onnx.planned import computation_from_onnx

SHARED = """<ir_version: 10, opset_import: ["" : 20]>
g (float16[n,4,16] a, float16[n,k,16] b, float16[n,k,12] v)
  => (float16[n,4,12] y, float16[n,4,12] z) {
    kt = Transpose <perm = [0, 2, 1]> (b)
    first = MatMul(a, kt)
    p = Softmax <axis = -1> (first)
    y = MatMul(p, v)
    half = Mul(a, a)
    second = MatMul(half, kt)
    q = Softmax <axis = -1> (second)
    out = MatMul(q, v)
    z = Add(out, out)
}"""
"""Two attentions to the same values, the first of which is an output of the graph."""


def graph(text: str = SHARED) -> ir.Model:
    """The graph with shapes."""
    return ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))


def run(model: ir.Model, path: Path) -> list[np.ndarray]:
    """Of numbers that are always the same."""
    ir.save(model, path)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    rng = np.random.default_rng(1)
    shapes = {"a": (2, 4, 16), "b": (2, 8, 16), "v": (2, 8, 12)}
    inputs = {name: rng.normal(size=shape).astype("float16") for name, shape in shapes.items()}
    return [np.asarray(one) for one in ort.InferenceSession(path).run(None, inputs)]


def test_they_are_widened_once_and_what_comes_out_is_the_same(tmp_path: Path) -> None:
    model = graph()
    before = run(model, tmp_path / "before.onnx")
    assert widen_values(model) == 2
    after = run(model, tmp_path / "after.onnx")
    for wanted, found in zip(before, after, strict=True):
        assert np.array_equal(wanted, found)
    saved = ir.load(tmp_path / "after.onnx")
    operators = [node.op_type for node in saved.graph]
    assert (operators.count("Pad"), operators.count("Slice")) == (1, 2)
    assert [one.operands[-1].shape[-1] for one in attentions(saved)] == [16, 16]
    assert computation_from_onnx(saved).attentions == 2
    assert [output.name for output in saved.graph.outputs] == ["y", "z"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("float16[n,k,12] v", "float16[n,k,16] v"), "as wide"),
        (("float16", "float"), "in float32, which is not fused anyway"),
    ],
)
def test_others_stay(change: tuple[str, str], words: str) -> None:
    text = SHARED.replace(*change)
    if words == "as wide":
        text = text.replace("[n,4,12]", "[n,4,16]")
    model = graph(text)
    assert widen_values(model) == 0, words
    assert "Pad" not in {node.op_type for node in model.graph}
