"""The graph form of ONNX Runtime on CUDA: every rewriting against the graph before it.

The processor runs the fused operators, too, in float32; in half it casts around them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from samforge.backends._onnx_file import notes_from_onnx
from samforge.backends.onnxruntime import OnnxRuntimeSession
from samforge.backends.onnxruntime.placement import SIZES_NOTE as READ_NOTE
from samforge.backends.onnxruntime.session import tensor_of
from samforge.core.errors import SettingError
from samforge.core.session import PartSpec
from samforge.measure.fidelity import compare_outputs, worst
from samforge.models.part import Part
from samforge.transform.export import exported_from_file
from samforge.transform.fuse import fuse
from samforge.transform.onnx.convert import onnx_from_exported, save_onnx
from samforge.transform.onnx.cuda_attention import fuse_cuda_attention
from samforge.transform.onnx.cuda_blocks import fuse_bias_gelu, fuse_skip_norm
from samforge.transform.onnx.cuda_flavour import SIZES_NOTE, note_sizes, to_cuda

HEADS, SIZE = 2, 4
WIDTH = HEADS * SIZE


def parsed(text: str) -> ir.Model:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]>\n{text}')
    return ir.from_proto(onnx.shape_inference.infer_shapes(model, strict_mode=True))


def attention(queries: int, keys: int, bias: str = "", perm: str = "0, 2, 3, 1") -> ir.Model:
    """Cross-attention with keys that are transposed at once, and what is added to the scores."""
    given = f", float[{bias}] bias" if bias else ""
    split = f"<int64[4] split = {{0, 0, {HEADS}, {SIZE}}}, int64[3] whole = {{0, 0, {WIDTH}}}>"
    return parsed(
        f"""attention (float[2, {queries}, {WIDTH}] q, float[2, {keys}, {WIDTH}] k,
            float[2, {keys}, {WIDTH}] v{given}) => (float[2, {queries}, {WIDTH}] y)
        {split} {{
            qs = Reshape(q, split)
            qh = Transpose <perm = [0, 2, 1, 3]> (qs)
            ks = Reshape(k, split)
            kt = Transpose <perm = [{perm}]> (ks)
            vs = Reshape(v, split)
            vh = Transpose <perm = [0, 2, 1, 3]> (vs)
            scores = MatMul(qh, kt)
            {"added = Add(bias, scores)" if bias else "added = Identity(scores)"}
            weights = Softmax <axis = -1> ({"added" if bias else "scores"})
            context = MatMul(weights, vh)
            back = Transpose <perm = [0, 2, 1, 3]> (context)
            y = Reshape(back, whole)
        }}"""
    )


def inputs_of(model: ir.Model) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    return {
        str(value.name): random.normal(size=list(value.shape or ())).astype(np.float32)
        for value in model.graph.inputs
    }


def by_definition(model: ir.Model) -> dict[str, np.ndarray]:
    found = ReferenceEvaluator(ir.to_proto(model)).run(None, inputs_of(model))
    return {str(v.name): np.asarray(a) for v, a in zip(model.graph.outputs, found, strict=True)}


def run(model: ir.Model, folder: Path) -> dict[str, np.ndarray]:
    import onnxruntime

    path = folder / "x.onnx"
    save_onnx(model, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    spec = PartSpec(
        name="x",
        inputs=tuple(map(tensor_of, session.get_inputs())),
        outputs=tuple(map(tensor_of, session.get_outputs())),
    )
    return OnnxRuntimeSession(path, spec).run(inputs_of(model))


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def assert_near(
    found: dict[str, np.ndarray], wanted: dict[str, np.ndarray], bound: float = 2e-6
) -> None:
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert np.abs(found[name] - array).max() < bound, name


@pytest.mark.parametrize(
    ("queries", "keys", "bias", "spread"),
    [
        (5, 3, "", 0),
        (8, 3, "", 0),
        (5, 3, f"2, {HEADS}, 5, 3", 0),
        (5, 3, "1, 1, 5, 3", 0),
        (5, 3, "2, 1, 1, 3", 1),
        (8, 8, "2, 1, 1, 8", 1),
    ],
)
def test_fused_attention_computes_the_same(
    queries: int, keys: int, bias: str, spread: int, tmp_path: Path
) -> None:
    wanted = by_definition(attention(queries, keys, bias))
    model = fuse_cuda_attention(attention(queries, keys, bias))
    counts = operators(model)
    assert counts["MultiHeadAttention"] == 1
    assert counts["Softmax"] == counts["MatMul"] == counts["Transpose"] == 0
    assert counts["Expand"] == spread
    assert_near(run(model, tmp_path), wanted)


@pytest.mark.parametrize(
    ("queries", "keys", "bias"), [(8, 3, "2, 1, 1, 3"), (8, 3, "2, 2, 8, 3"), (5, 3, "5, 3")]
)
def test_rows_that_no_kernel_takes_stay(queries: int, keys: int, bias: str) -> None:
    model = attention(queries, keys, bias)
    assert operators(fuse_cuda_attention(model)) == operators(attention(queries, keys, bias))
    assert "com.microsoft" not in model.opset_imports


def test_one_mask_is_spread_once() -> None:
    text = str(onnx.printer.to_text(ir.to_proto(attention(5, 3, "2, 1, 1, 3"))))
    body = text[text.index("qs = ") : text.rindex("}")]
    again = re.sub(r"\b(qs|qh|ks|kt|vs|vh|scores|added|weights|context|back|y)\b", r"\1_2", body)
    model = onnx.parser.parse_model(
        text[: text.rindex("}")].replace(
            "=> (float[2,5,8] y)", "=> (float[2,5,8] y, float[2,5,8] y_2)"
        )
        + again
        + "}"
    )
    fused = fuse_cuda_attention(ir.from_proto(onnx.shape_inference.infer_shapes(model)))
    assert operators(fused)["MultiHeadAttention"] == 2
    assert operators(fused)["Expand"] == 1


def gelu(approximate: str = "none", users: int = 1) -> ir.Model:
    more = ", float[2, 3, 4] z" if users > 1 else ""
    return parsed(
        f"""block (float[2, 3, 4] x) => (float[2, 3, 4] y{more})
        <float[4, 4] w = {{{", ".join(map(str, np.linspace(-1, 1, 16).round(3)))}}},
         float[4] b = {{0.1, -0.2, 0.3, 0.4}}> {{
            product = MatMul(x, w)
            total = Add(product, b)
            y = Gelu <approximate = "{approximate}"> (total)
            {"z = Neg(total)" if users > 1 else ""}
        }}"""
    )


def test_a_bias_goes_into_the_gelu(tmp_path: Path) -> None:
    model = fuse_bias_gelu(gelu())
    assert operators(model) == {"MatMul": 1, "BiasGelu": 1}
    assert_near(run(model, tmp_path), by_definition(gelu()))


@pytest.mark.parametrize("other", [{"approximate": "tanh"}, {"users": 2}])
def test_another_gelu_stays(other: dict[str, object]) -> None:
    make: Callable[..., ir.Model] = gelu
    assert operators(fuse_bias_gelu(make(**other))) == operators(make(**other))


def norm(shape: str = "2, 3, 4", skip: str = "2, 3, 4", stream: bool = True) -> ir.Model:
    more = f", float[{shape}] sum" if stream else ""
    total = "sum" if stream else "inner"
    return parsed(
        f"""block (float[{shape}] x, float[{skip}] residual) => (float[{shape}] y{more})
        <float[4, 4] w = {{{", ".join(map(str, np.linspace(-1, 1, 16).round(3)))}}},
         float[4] b = {{0.1, -0.2, 0.3, 0.4}},
         float[4] gamma = {{1.1, 0.9, 1.2, 0.8}}, float[4] beta = {{0.0, 0.1, 0.2, 0.3}}> {{
            product = MatMul(x, w)
            linear = Add(product, b)
            {total} = Add(residual, linear)
            y = LayerNormalization <axis = -1, epsilon = 1e-3> ({total}, gamma, beta)
        }}"""
    )


@pytest.mark.parametrize("stream", [True, False])
def test_a_residual_sum_and_its_norm_are_one(stream: bool, tmp_path: Path) -> None:
    model = fuse_skip_norm(norm(stream=stream))
    assert operators(model) == {"MatMul": 1, "SkipLayerNormalization": 1}
    (fused,) = [node for node in model.graph if node.op_type == "SkipLayerNormalization"]
    assert [str(v.name) for v in fused.inputs if v] == ["residual", "product", "gamma", "beta", "b"]
    assert_near(run(model, tmp_path), by_definition(norm(stream=stream)))


@pytest.mark.parametrize(("shape", "skip"), [("2, 3, 5, 4", "2, 3, 5, 4"), ("2, 3, 4", "1, 3, 4")])
def test_sums_of_other_shapes_stay(shape: str, skip: str) -> None:
    assert operators(fuse_skip_norm(norm(shape, skip))) == operators(norm(shape, skip))


def test_half_keeps_the_residual_stream_float(tmp_path: Path) -> None:
    wanted = by_definition(norm())
    model = to_cuda(norm(), "fp16")
    types = {node.op_type: node.outputs[0].dtype for node in model.graph if node.op_type != "Cast"}
    assert types == {"MatMul": ir.DataType.FLOAT16, "SkipLayerNormalization": ir.DataType.FLOAT}
    assert_near(run(model, tmp_path), wanted, 5e-3)


def test_half_computes_attention_in_half(tmp_path: Path) -> None:
    wanted = by_definition(attention(5, 3, "2, 1, 1, 3"))
    model = to_cuda(attention(5, 3, "2, 1, 1, 3"), "fp16")
    (fused,) = [node for node in model.graph if node.op_type == "MultiHeadAttention"]
    assert {value.dtype for value in fused.inputs if value} == {ir.DataType.FLOAT16}
    assert_near(run(model, tmp_path), wanted, 5e-3)


def test_only_sizes_may_run_on_the_processor(tmp_path: Path) -> None:
    model = parsed(
        """sizes (float[n, 3] x, int64[n, 3] ids) => (float[m, 3] y, int64[n, 3] z)
        <int64[1] three = {3}, int64[1] one = {1}> {
            first = Shape <start = 0, end = 1> (x)
            twice = Mul(first, one)
            shape = Concat <axis = 0> (twice, three)
            y = Expand(x, shape)
            z = Add(ids, one)
        }"""
    )
    for node in model.graph:
        node.name = "named" if node.op_type == "Concat" else None
    note_sizes(model)
    save_onnx(model, tmp_path / "x.onnx")
    assert READ_NOTE == SIZES_NOTE
    names = notes_from_onnx(tmp_path / "x.onnx")[SIZES_NOTE].split(",")
    assert [node.op_type for node in model.graph if node.name in names] == [
        *("Shape", "Mul", "Concat")
    ]
    assert len(set(names)) == 3
    assert "named" in names


def test_other_precisions_are_refused() -> None:
    with pytest.raises(SettingError, match="in fp32, fp16, not in int8"):
        to_cuda(norm(), "int8")


@pytest.mark.parametrize(
    ("name", "attentions"),
    [
        ("text", (2, 0)),
        pytest.param("vision", (2, 0), marks=pytest.mark.slow),
        # Left: the prompt's rows for 64 tokens in two layers, and pooling by the phrase.
        pytest.param("detector", (8, 3), marks=pytest.mark.slow),
    ],
)
def test_parts_in_this_form_are_the_parts(
    name: str,
    attentions: tuple[int, int],
    exported_file: Callable[[str], Path],
    part: Callable[..., Part],
    example: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    """Whole parts of the small model as builds convert them, in float32 on the processor."""
    exported, spec = exported_from_file(exported_file(name)), part(name).spec
    program = fuse(exported, target="onnxruntime-cuda").program
    model = to_cuda(onnx_from_exported(program, spec), "fp32")
    counts = operators(model)
    assert (counts["MultiHeadAttention"], counts["Softmax"]) == attentions
    save_onnx(model, tmp_path / "x.onnx")
    inputs = example(name, {"batch": 2, "prompts": 3}, seed=1)
    wanted = {key: tensor.numpy() for key, tensor in part(name)(inputs).items()}
    arrays = {key: tensor.numpy() for key, tensor in inputs.items()}
    found = OnnxRuntimeSession(tmp_path / "x.onnx", spec).run(arrays)
    assert worst(compare_outputs(wanted, found)).gated <= 1e-4
