"""Every rule fires on a small bad graph and stays silent on its repaired twin and on our graphs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from samforge.apps import cli
from samforge.transform.onnx.attention_forms import FORMS, reform_attention
from samforge.transform.onnx.half import cast_half
from samforge.transform.onnx.hazards import RULES, SEVERITIES, lint
from samforge.transform.onnx.precision_plan import TENSORRT


def graph(body: str, opset: int = 20) -> ir.Model:
    """Read ONNX's text form, with the types of every value filled in."""
    text = f'<ir_version: 10, opset_import: ["" : {opset}]> g {body}'
    return ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))


def ids(model: ir.Model) -> list[str]:
    return [finding.rule for finding in lint(model)]


ATTENTION = """(float16[2,600,64] a, float16[2,600,64] b, float16[2,600,64] c, float16[64,64] w,
float16 s) => (float16[2,600,64] y) {
    q0 = MatMul(a, w)
    q = Mul(q0, s)
    k0 = MatMul(b, w)
    k = Transpose <perm = [0, 2, 1]> (k0)
    v = MatMul(c, w)
    scores = MatMul(q, k)
    p = Softmax <axis = -1> (scores)
    y = MatMul(p, v)
}"""
ROTATED = """    one = Slice(q0, c0, c32, c2)
    two = Slice(q0, c32, c64, c2)
    minus = Neg(two)
    turned = Concat <axis = 2> (minus, one)
    a1 = Mul(q0, cosine)
    a2 = Mul(turned, cosine)
    q1 = Add(a1, a2)
    q = Mul(q1, s)
"""
TABLES = "<int64[1] c0 = {0}, int64[1] c32 = {32}, int64[1] c64 = {64}, int64[1] c2 = {2}> {"
ROTARY = (
    ATTENTION.replace("float16 s)", "float16 s, float16[64] cosine)")
    .replace(" y) {", " y) " + TABLES)
    .replace("    q = Mul(q0, s)\n", ROTATED)
)
ROTARY_FLOAT = (
    ROTARY.replace("float16[64] cosine", "float[64] cosine")
    .replace("one = Slice(q0,", "wide = Cast <to = 1> (q0)\n    one = Slice(wide,")
    .replace("two = Slice(q0,", "two = Slice(wide,")
    .replace("a1 = Mul(q0,", "a1 = Mul(wide,")
    .replace("q = Mul(q1, s)", "q2 = Cast <to = 10> (q1)\n    q = Mul(q2, s)")
)
QDQ = """(float[2,600,64] x, float[2,600,64] k) => (float[2,600,600] y)
<float s = {0.1}, int8 z = {0}> {
    xq = QuantizeLinear(x, s, z)
    xd = DequantizeLinear(xq, s, z)
    kq = QuantizeLinear(k, s, z)
    kd = DequantizeLinear(kq, s, z)
    kt = Transpose <perm = [0, 2, 1]> (kd)
    scores = MatMul(xd, kt)
    y = Softmax <axis = -1> (scores)
}"""
INT8_ATTENTION = QDQ.replace("float[2,600,600] y", "float[2,600,64] y").replace(
    "y = Softmax <axis = -1> (scores)", "p = Softmax <axis = -1> (scores)\n    y = MatMul(p, k)"
)
NORM = """(float16[2,64] x, float16 two, float16 eps) => (float16[2,64] y)
<int64[1] axes = {-1}> {
    mean = ReduceMean(x, axes)
    centred = Sub(x, mean)
    square = Pow(centred, two)
    variance = ReduceMean(square, axes)
    shifted = Add(variance, eps)
    deviation = Sqrt(shifted)
    y = Div(centred, deviation)
}"""
CUMSUM = """(float[4,4] x) => (float[4,4] y) <int64 zero = {0}, int64 one = {1}> {
    a = CumSum(x, zero)
    b = CumSum(x, one)
    y = Add(a, b)
}"""
STRIDED = """(float16[1,4,8,8] x, float16[4,4,1,1] w) => (float16[1,8,8,8] y)
<int64[2] halves = {4, 4}> {
    all = Concat <axis = 1> (x, x)
    left, right = Split <axis = 1> (all, halves)
    made = Conv(right, w)
    on = Relu(made)
    sum = Add(on, right)
    y = Concat <axis = 1> (sum, right)
}"""
RESIZE = """(float[1,1,4,4] x) => (float[1,1,8,8] y) <float[4] scales = {1, 1, 2, 2}> {
    y = Resize <mode = "linear", antialias = 1> (x, , scales)
}"""
GRID = """(float[1,1,4,4] x, float[1,4,4,2] at) => (float[1,1,4,4] y) { y = GridSample(x, at) }"""
IF = """(bool c, float[4] x) => (float[4] y) {
    y = If (c) <
        then_branch = t () => (float[4] one) { one = Neg(x) },
        else_branch = e () => (float[4] two) { two = Abs(x) }
    >
}"""
DOUBLE = """(float[4] x) => (float[4] y) <double[4] w = {1, 2, 3, 4}> {
    wide = Cast <to = 11> (x)
    sum = Add(wide, w)
    y = Cast <to = 1> (sum)
}"""
BIG = """(int64[4] x) => (int64[4] y) <int64[1] w = {4294967296}> { y = Add(x, w) }"""
OPERATOR = """(float[1,2,8,16] q) => (float[1,2,8,16] y) { y = Attention(q, q, q) }"""

UP = """(float[1,4,4,4] x, float[4,4,2,2] w, float s, int8 z) => (float[1,4,8,8] y) {
    xq = QuantizeLinear(x, s, z)
    xd = DequantizeLinear(xq, s, z)
    wq = QuantizeLinear(w, s, z)
    wd = DequantizeLinear(wq, s, z)
    y = ConvTranspose <strides = [2, 2]> (xd, wd)
}"""

FP8_CAST = """(float16[2,8] x, float16[8,8] w, float16 s) => (float16[2,8] y) {
    small = Cast <to = 17> (w)
    wide = Cast <to = 10> (small)
    scaled = Mul(wide, s)
    y = MatMul(x, scaled)
}"""
FP8_PAIR = FP8_CAST.replace("Cast <to = 10> (small)", "DequantizeLinear(small, s)")

CORPUS = {
    "cumsum-axes": (CUMSUM, CUMSUM.replace("CumSum(x, one)", "CumSum(x, zero)")),
    "grid-sample": (GRID, GRID.replace("GridSample(x, at)", "Identity(x)")),
    "conditional": (IF, "(float[4] x) => (float[4] y) { y = Neg(x) }"),
    "strided-residual": (STRIDED, STRIDED.replace("(sum, right)", "(sum, on)")),
    "layer-norm-half": (NORM, NORM.replace("float16", "float")),
    "resize-antialias": (RESIZE, RESIZE.replace("antialias = 1", "antialias = 0")),
    "wide-numbers": (DOUBLE, DOUBLE.replace("double[4]", "float[4]").replace("to = 11", "to = 1")),
    "attention-input-transpose": (ATTENTION.replace("MatMul(b, w)", "Identity(b)"), ATTENTION),
    "attention-rotary-half": (ROTARY, ROTARY_FLOAT),
    "attention-int8-long": (INT8_ATTENTION, INT8_ATTENTION.replace("600", "512")),
    "attention-not-half": (
        INT8_ATTENTION.replace("MatMul(xd, kt)", "MatMul(x, kt)").replace("(kd)", "(k)"),
        ATTENTION,
    ),
    "attention-operator-float": (OPERATOR, OPERATOR.replace("float[", "float16[")),
    "zero-point": (QDQ.replace("z = {0}", "z = {3}"), QDQ),
    "asymmetric-activations": (QDQ.replace("int8 z", "uint8 z"), QDQ),
    "fp8-arithmetic": (FP8_CAST, FP8_PAIR),
    "transposed-convolution-8-bit": (UP, UP.replace("(xd, wd)", "(x, w)")),
    "dequantize-alone": (QDQ.replace("MatMul(xd, kt)", "MatMul(x, kt)"), QDQ),
}
"""A graph that is wrong in one way, and the same graph put right."""
OPSETS = {"attention-operator-float": 23}


def test_every_rule_has_a_bad_graph() -> None:
    assert {rule.id for rule in RULES} == set(CORPUS)
    assert {rule.severity for rule in RULES} == set(SEVERITIES)


@pytest.mark.parametrize("rule", CORPUS)
def test_a_rule_fires_on_its_graph_and_not_on_the_repaired_one(rule: str) -> None:
    bad, good = (graph(body, OPSETS.get(rule, 20)) for body in CORPUS[rule])
    assert rule in ids(bad)
    assert rule not in ids(good)


@pytest.mark.parametrize("body", [ATTENTION, ROTARY_FLOAT, QDQ.replace("600", "8")])
def test_good_graphs_have_no_finding(body: str) -> None:
    assert [str(finding) for finding in lint(graph(body))] == []


def test_large_integers_count_too_and_open_ends_of_slices_do_not() -> None:
    assert ids(graph(BIG)) == ["wide-numbers"]
    ends = """(float[4] x) => (float[M] y)
    <int64[1] zero = {0}, int64[1] end = {9223372036854775807}> { y = Slice(x, zero, end) }"""
    assert ids(graph(ends)) == []


def test_cumsum_in_two_directions() -> None:
    body = CUMSUM.replace("CumSum(x, one)", "CumSum <reverse = 1> (x, zero)")
    (finding,) = lint(graph(body))
    assert finding.places == ("a nameless node (CumSum)", "a nameless node (CumSum)")
    assert finding.place == "a nameless node (CumSum) and 1 more"
    assert "#4551" in finding.reference


def test_the_worst_comes_first() -> None:
    body = CUMSUM.replace("int64 one", "float s = {0.1}, int8 z = {0}, int64 one")
    body = body.replace("[4,4] y)", "[4,4] y, float[4,4] o)")
    pair = "q = QuantizeLinear(x, s, z)\n    o = DequantizeLinear(q, s, z)"
    body = body.replace("y = Add(a, b)", f"{pair}\n    y = Add(a, b)")
    assert ids(graph(body)) == ["cumsum-axes", "dequantize-alone"]


@pytest.mark.parametrize(
    "name",
    [
        "text",
        "detector_boxes",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("vision", "detector")),
    ],
)
def test_our_graphs_pass(name: str, onnx_file: Callable[[str], Path]) -> None:
    model = ir.load(onnx_file(name))
    assert [str(finding) for finding in lint(model)] == []
    assert [str(finding) for finding in lint(cast_half(model, TENSORRT))] == []
    for form in FORMS[1:]:
        reform_attention(model, form)
        assert [str(finding) for finding in lint(model)] == []


def test_inspect_shows_findings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.onnx"
    ir.save(graph(NORM), path)
    assert cli.main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert "Finding layer-norm-half (wrong): a nameless node (Pow)." in out
    assert "No operator that" not in out
    assert cli.main(["inspect", str(path), "--json"]) == 0
    (finding,) = json.loads(capsys.readouterr().out)["graph"]["findings"]
    assert finding["rule"] == "layer-norm-half"
    assert finding["places"] == ["a nameless node (Pow)"]
