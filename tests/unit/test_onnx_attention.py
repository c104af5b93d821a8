"""Attention in other forms: in blocks, by ONNX Runtime's kernels, with rotary over halves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from samforge.backends.onnxruntime import OnnxRuntimeSession
from samforge.core.session import PartSpec, TensorSpec
from samforge.transform.onnx.attention_kernels import fuse_attention
from samforge.transform.onnx.blocks import block_attention
from samforge.transform.onnx.convert import save_onnx
from samforge.transform.onnx.half import cast_half
from samforge.transform.onnx.precision_plan import TENSORRT, Plan
from samforge.transform.onnx.rotary_halves import rotary_by_halves
from samforge.transform.onnx.rotary_pattern import rotary_from_add

BATCH, TOKENS, HEADS, SIZE = 2, 10, 2, 8
WIDTH = HEADS * SIZE
SPEC = PartSpec(
    name="attention",
    inputs=(TensorSpec(name="x", dtype="float32", shape=(BATCH, TOKENS, WIDTH)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=(BATCH, TOKENS, WIDTH)),),
)


class Writer:
    """Writes the nodes that the exporter writes."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def constant(self, name: str, array: object) -> str:
        self.tensors.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, operator: str, inputs: list[str], *outputs: str, **attributes: object) -> str:
        name = f"node_{outputs[0]}"
        self.nodes.append(helper.make_node(operator, inputs, outputs, name, **attributes))
        return outputs[0]

    def linear(self, name: str, width: int) -> str:
        weight = (self.random.normal(size=(WIDTH, width)) / 4).astype(np.float32)
        bias = self.random.normal(size=width).astype(np.float32)
        product = self.node("MatMul", ["x", self.constant(f"{name}_w", weight)], f"{name}_mm")
        return self.node("Add", [product, self.constant(f"{name}_b", bias)], name)

    def heads(self, name: str) -> str:
        self.node("Reshape", [name, "split"], f"{name}_split")
        return self.node("Transpose", [f"{name}_split"], f"{name}_heads", perm=[0, 2, 1, 3])

    def turned(self, name: str) -> str:
        straight = self.node("Mul", [name, "cos"], f"{name}_cos")
        self.node("Reshape", [name, "pairs"], f"{name}_pairs")
        for part, start, end in (("even", "0", "1"), ("odd", "1", "2")):
            self.node("Slice", [f"{name}_pairs", start, end, "last"], f"{name}_{part}_1")
            self.node("Squeeze", [f"{name}_{part}_1", "last"], f"{name}_{part}")
        self.node("Neg", [f"{name}_odd"], f"{name}_minus")
        for part in ("minus", "even"):
            self.node("Unsqueeze", [f"{name}_{part}", "last"], f"{name}_{part}_u")
        self.node("Concat", [f"{name}_minus_u", f"{name}_even_u"], f"{name}_turned", axis=-1)
        self.node("Reshape", [f"{name}_turned", "flat"], f"{name}_rotated")
        across = self.node("Mul", [f"{name}_rotated", "sin"], f"{name}_sin")
        return self.node("Add", [straight, across], f"{name}_rotary")

    def shapes_and_tables(self) -> None:
        angles = self.random.uniform(-3, 3, (TOKENS, SIZE // 2)).astype(np.float32)
        self.constant("cos", np.repeat(np.cos(angles), 2, axis=-1)[None])
        self.constant("sin", np.repeat(np.sin(angles), 2, axis=-1)[None])
        self.constant("split", np.array([0, 0, HEADS, SIZE]))
        self.constant("pairs", np.array([0, 0, 0, SIZE // 2, 2]))
        self.constant("flat", np.array([0, 0, 0, SIZE]))
        self.constant("whole", np.array([0, 0, WIDTH]))
        self.constant("last", np.array([-1]))
        for index in range(3):
            self.constant(str(index), np.array([index]))

    def model(self) -> ir.Model:
        shape = [BATCH, TOKENS, WIDTH]
        graph = helper.make_graph(
            self.nodes,
            "attention",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
            self.tensors,
        )
        opsets = [helper.make_opsetid("", 20)]
        proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))


def attention(*, rotary: bool = True, mask: bool = False, merged: bool = False) -> ir.Model:
    """Self-attention as the exporter writes it, with one linear for all three or three."""
    write = Writer()
    write.shapes_and_tables()
    if merged:
        qkv = write.linear("qkv", 3 * WIDTH)
        write.node("Split", [qkv], "q", "k", "v", axis=-1, num_outputs=3)
    else:
        for name in "qkv":
            write.linear(name, WIDTH)
    queries, keys, values = map(write.heads, "qkv")
    if rotary:
        queries, keys = write.turned(queries), write.turned(keys)
    write.node("Mul", [queries, write.constant("scale", np.float32(SIZE**-0.5))], "scaled")
    write.node("Transpose", [keys], "keys", perm=[0, 1, 3, 2])
    scores = write.node("MatMul", ["scaled", "keys"], "scores")
    if mask:
        future = np.where(np.tri(TOKENS), 0, -1e4).astype(np.float32)
        scores = write.node("Add", [scores, write.constant("mask", future)], "masked")
    write.node("Softmax", [scores], "weights", axis=-1)
    write.node("MatMul", ["weights", values], "context")
    write.node("Transpose", ["context"], "back", perm=[0, 2, 1, 3])
    write.node("Reshape", ["back", "whole"], "y")
    return write.model()


def given() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).normal(size=(BATCH, TOKENS, WIDTH)).astype(np.float32)}


def by_definition(model: ir.Model) -> np.ndarray:
    (result,) = ReferenceEvaluator(ir.to_proto(model)).run(None, dict(given()))
    return np.asarray(result)


def run(model: ir.Model, folder: Path) -> np.ndarray:
    save_onnx(model, folder / "x.onnx")
    return OnnxRuntimeSession(folder / "x.onnx", SPEC).run(given())["y"]


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("rotary", [False, True])
def test_kernels_compute_the_same(rotary: bool, merged: bool, tmp_path: Path) -> None:
    wanted = by_definition(attention(rotary=rotary, merged=merged))
    model = fuse_attention(attention(rotary=rotary, merged=merged))
    counts = operators(model)
    assert counts["MultiHeadAttention"] == 1
    assert counts["RotaryEmbedding"] == 2 * rotary
    assert counts["Softmax"] == counts["Transpose"] == 0
    assert model.opset_imports["com.microsoft"] == 1
    assert np.abs(run(model, tmp_path) - wanted).max() < 2e-6


def test_attention_with_a_mask_stays(tmp_path: Path) -> None:
    wanted = by_definition(attention(mask=True))
    model = fuse_attention(attention(mask=True))
    assert operators(model) == operators(attention(mask=True))
    assert "com.microsoft" not in model.opset_imports
    assert np.abs(run(model, tmp_path) - wanted).max() < 2e-6


@pytest.mark.parametrize("queries", [1, 3, 5, 9])
def test_blocks_compute_the_same(queries: int, tmp_path: Path) -> None:
    wanted = by_definition(attention())
    model = block_attention(attention(), queries=queries)
    blocks = -(-TOKENS // queries)
    assert operators(model)["Softmax"] == blocks
    assert max(
        node.outputs[0].shape[2]  # type: ignore[index]
        for node in model.graph
        if node.op_type == "Softmax"
    ) == min(queries, TOKENS)
    # Smaller products may sum in another order.
    assert np.abs(by_definition(model) - wanted).max() < 2e-6
    assert np.abs(run(model, tmp_path) - wanted).max() < 2e-6


def test_few_queries_stay_whole() -> None:
    assert operators(block_attention(attention())) == operators(attention())
    assert operators(block_attention(attention(), queries=TOKENS)) == operators(attention())


@pytest.mark.parametrize("merged", [False, True])
def test_halves_compute_the_same(merged: bool, tmp_path: Path) -> None:
    wanted = by_definition(attention(merged=merged))
    model = rotary_by_halves(attention(merged=merged))
    assert operators(model)["Slice"] == operators(model)["Squeeze"] == 0
    assert operators(model)["Split"] == 2 + merged
    assert np.abs(by_definition(model) - wanted).max() < 2e-6
    assert np.abs(run(model, tmp_path) - wanted).max() < 2e-6


def test_halves_need_both_sides() -> None:
    # Queries that something else reads must keep their order.
    model = attention()
    queries = next(node for node in model.graph if node.name == "node_q")
    extra = ir.node("Abs", [queries.outputs[0]])
    extra.outputs[0].name, extra.outputs[0].dtype = "extra", ir.DataType.FLOAT
    model.graph.append(extra)
    model.graph.outputs.append(extra.outputs[0])
    assert operators(rotary_by_halves(model))["Slice"] == 4


def test_the_rotary_pattern_is_read() -> None:
    model = attention()
    found = [rotary_from_add(node) for node in model.graph if node.op_type == "Add"]
    rotaries = [rotary for rotary in found if rotary is not None]
    assert [rotary.value.name for rotary in rotaries] == ["q_heads", "k_heads"]
    cos = model.graph.initializers["cos"].const_value
    assert cos is not None
    assert np.array_equal(rotaries[0].cos, cos.numpy()[0, :, ::2])


def spoil_order(model: ir.Model) -> None:
    (concat,) = [node for node in model.graph if node.name == "node_q_heads_turned"]
    first, second = concat.inputs
    concat.replace_input_with(0, second)
    concat.replace_input_with(1, first)


def spoil_table(model: ir.Model) -> None:
    table = model.graph.initializers["cos"]
    assert table.const_value is not None
    array = table.const_value.numpy().copy()
    array[0, 0, 0] += 1
    table.const_value = ir.Tensor(array, name="cos")


def spoil_sign(model: ir.Model) -> None:
    (negative,) = [node for node in model.graph if node.name == "node_q_heads_minus"]
    negative.outputs[0].replace_all_uses_with(negative.inputs[0])


@pytest.mark.parametrize("spoil", [spoil_order, spoil_table, spoil_sign])
@pytest.mark.parametrize("change", [fuse_attention, rotary_by_halves])
def test_other_rotations_are_left_alone(
    spoil: Callable[[ir.Model], None], change: Callable[[ir.Model], ir.Model]
) -> None:
    model = attention()
    spoil(model)
    wanted = by_definition(model)
    change(model)
    assert operators(model)["MultiHeadAttention"] == operators(model)["RotaryEmbedding"] == 0
    assert np.array_equal(by_definition(model), wanted)


def test_half_keeps_the_core_whole(tmp_path: Path) -> None:
    wanted = by_definition(attention())
    model = cast_half(attention(), TENSORRT)
    types = {node.name: node.outputs[0].dtype for node in model.graph}
    half, single = ir.DataType.FLOAT16, ir.DataType.FLOAT
    assert {types[f"node_{n}"] for n in ("scores", "weights", "context", "scaled", "keys")} == {
        half
    }
    assert {types[f"node_{n}_rotary"] for n in ("q_heads", "k_heads")} == {single}
    assert np.abs(run(model, tmp_path) - wanted).max() < 5e-3


def test_masks_and_rotary_follow_the_plan() -> None:
    model = cast_half(attention(mask=True), Plan(softmax="float", rotary="half"))
    types = {node.name: node.outputs[0].dtype for node in model.graph}
    assert types["node_masked"] == types["node_weights"] == ir.DataType.FLOAT
    assert types["node_scores"] == types["node_context"] == ir.DataType.FLOAT16
    assert types["node_q_heads_rotary"] == ir.DataType.FLOAT16
