"""Forms of attention compute the same and are fused less."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from samforge.core.errors import SettingError
from samforge.transform.onnx.attention_forms import FORMS, forms_of, reform_attention
from samforge.transform.onnx.attention_pattern import attentions
from samforge.transform.onnx.planned import computation_from_onnx

TWO = """<ir_version: 10, opset_import: ["" : 20]>
g (float16[1,4,16] a, float16[1,8,16] b, float16[1,4,8] mask) => (float16[1,4,16] y) {
    kt = Transpose <perm = [0, 2, 1]> (b)
    scores = MatMul(a, kt)
    masked = Add(scores, mask)
    p = Softmax <axis = -1> (masked)
    near = MatMul(p, b)
    at = Transpose <perm = [0, 2, 1]> (a)
    own = MatMul(near, at)
    q = Softmax <axis = -1> (own)
    y = MatMul(q, a)
}"""


@pytest.fixture
def model() -> ir.Model:
    """Two attentions: over 8 keys with a mask, and over 4."""
    return ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(TWO)))


def _run(model: ir.Model, path: Path) -> np.ndarray:
    ir.save(model, path)
    rng = np.random.default_rng(1)
    shapes = {"a": (1, 4, 16), "b": (1, 8, 16), "mask": (1, 4, 8)}
    inputs = {name: rng.normal(size=shape).astype("float16") for name, shape in shapes.items()}
    (result,) = ort.InferenceSession(path).run(None, inputs)
    return np.asarray(result, np.float32)


def test_attention_is_found(model: ir.Model) -> None:
    found = attentions(model)
    assert [attention.tokens for attention in found] == [8, 4]
    assert all(attention.fusable for attention in found)
    assert [[value.name for value in a.operands] for a in found] == [
        ["a", "kt", "b"],
        ["near", "at", "a"],
    ]
    assert forms_of(model) == FORMS


@pytest.mark.parametrize(
    ("form", "fused", "gemms"),
    [
        ("fused", 2, {}),
        ("unfused-windows", 1, {"fp16": 2}),
        ("unfused", 0, {"fp16": 4}),
        ("float", 0, {"fp32": 4}),
    ],
)
def test_a_form_plans_what_it_says_and_computes_the_same(
    form: str, fused: int, gemms: dict[str, int], model: ir.Model, tmp_path: Path
) -> None:
    before = _run(model, tmp_path / "before.onnx")
    after = _run(reform_attention(model, form), tmp_path / "after.onnx")
    planned = computation_from_onnx(ir.load(tmp_path / "after.onnx"))
    assert (planned.attentions, dict(planned.gemms)) == (fused, gemms)
    if form == "float":
        np.testing.assert_allclose(after, before, atol=4e-3)
    else:
        np.testing.assert_array_equal(after, before)


def test_graphs_without_windows_or_attention_have_fewer_forms(model: ir.Model) -> None:
    body = TWO.replace("b, float16", "c, float16").replace("[1,8,16] c", "[1,4,16] b")
    body = body.replace("[1,4,8] mask", "[1,4,4] mask")
    one = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(body)))
    assert forms_of(one) == ("fused", "unfused", "float")
    assert forms_of(reform_attention(model, "unfused")) == ("fused",)


def test_small_heads_are_not_fused(model: ir.Model) -> None:
    body = TWO.replace("16]", "8]")
    small = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(body)))
    assert [attention.head_size for attention in attentions(small)] == [8, 8]
    assert computation_from_onnx(small).attentions == 0
    assert forms_of(small) == ("fused",)


def test_an_unknown_form(model: ir.Model) -> None:
    with pytest.raises(SettingError, match=r"There is no form 'quick' of attention\. Forms: fused"):
        reform_attention(model, "quick")


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        (("int8", "int8"), {"int8": 1}),
        (("float8e4m3fn", "float8e4m3fn"), {"fp8": 1}),
        (("int8", None), {"fp32": 1}),
    ],
)
def test_products_count_in_the_format_of_their_quantized_inputs(
    types: tuple[str | None, str | None], expected: dict[str, int]
) -> None:
    lines = []
    for name, kind in zip("xw", types, strict=True):
        zero = f"z{name}"
        if kind:
            lines.append(f"{name}q = QuantizeLinear({name}, s, {zero})")
            lines.append(f"{name}d = DequantizeLinear({name}q, s, {zero})")
        else:
            lines.append(f"{name}d = Identity({name})")
    zeros = "".join(f", {kind} z{name}" for name, kind in zip("xw", types, strict=True) if kind)
    body = "\n    ".join([*lines, "wt = Transpose <perm = [1, 0]> (wd)", "y = MatMul(xd, wt)"])
    text = (
        f'<ir_version: 10, opset_import: ["" : 20]> g (float[4,8] x, float[8,8] w, float s{zeros}) '
        f"=> (float[4,8] y) {{\n    {body}\n}}"
    )
    model = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text))
    assert dict(computation_from_onnx(ir.from_proto(model)).gemms) == expected
