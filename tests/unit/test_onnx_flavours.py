"""One calibration, several number formats: each flavour computes what the Q/DQ graph says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from samforge.backends import openvino as openvino_backend
from samforge.backends._onnx_file import notes_from_onnx
from samforge.backends.onnxruntime import OnnxRuntimeSession, cpu, optimized_from_onnx
from samforge.backends.onnxruntime.session import session_options
from samforge.backends.openvino import OpenVinoSession
from samforge.core.cpu_flags import products_saturate
from samforge.core.errors import BuildError, SettingError
from samforge.core.recipe import Recipe
from samforge.core.session import PartSpec, TensorSpec
from samforge.steps.flavours import flavoured
from samforge.transform.onnx.convert import save_onnx
from samforge.transform.onnx.e4m3 import to_e4m3
from samforge.transform.onnx.embeddings import TABLES_NOTE, embeddings_to_int8
from samforge.transform.onnx.half import cast_half
from samforge.transform.onnx.integer_kernels import (
    check_integer_kernels,
    integer_layers,
    integer_nodes,
    intended_layers,
)
from samforge.transform.onnx.openvino_flavour import to_openvino
from samforge.transform.onnx.precision_plan import SAFE, TENSORRT, Plan
from samforge.transform.onnx.qdq import fold_weight_transposes, quantized_layers, restore
from samforge.transform.onnx.u8s8 import FLOAT_NOTE, INTEGER_NOTE, to_u8s8
from samforge.transform.onnx.weight_only import weights_to_int8

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


class Graph:
    """Writes small graphs the way the exporter does."""

    def __init__(self, shape: list[int]) -> None:
        self.shape, self.nodes, self.tensors = shape, [], []
        self.random = np.random.default_rng(0)

    def constant(self, name: str, array: Any) -> str:
        self.tensors.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(
            helper.make_node(operator, inputs, [output], name=f"node_{output}", **attributes)
        )
        return output

    def pair(self, value: str, scale: float) -> str:
        """QuantizeLinear and DequantizeLinear with a symmetric int8 scale."""
        names = [self.constant(f"{value}_scale", np.float32(scale))]
        names.append(self.constant(f"{value}_zero", np.int8(0)))
        self.node("QuantizeLinear", [value, *names], f"{value}_q")
        return self.node("DequantizeLinear", [f"{value}_q", *names], f"{value}_dq")

    def weight(self, name: str, shape: tuple[int, ...], axis: int, scale: float = 1.0) -> str:
        """A quantized weight; every channel has a scale of its own."""
        integers = self.random.integers(-127, 128, shape).astype(np.int8)
        steps = scale * self.random.uniform(0.5, 1.5, shape[axis]) / 127 / np.sqrt(integers[0].size)
        given = [self.constant(name, integers)]
        given.append(self.constant(f"{name}_scale", steps.astype(np.float32)))
        given.append(self.constant(f"{name}_zero", np.zeros(shape[axis], np.int8)))
        return self.node("DequantizeLinear", given, f"{name}_dq", axis=axis)

    def bias(self, name: str, size: int) -> str:
        return self.constant(name, self.random.normal(size=size).astype(np.float32))

    def linear(self, value: str, name: str, sizes: tuple[int, int], scale: float = 1.0) -> str:
        """A linear as the exporter writes it: its weight is transposed where it is read."""
        weight = self.weight(f"{name}_w", sizes[::-1], 0, scale)
        moved = self.node("Transpose", [weight], f"{name}_wt", perm=[1, 0])
        product = self.node("MatMul", [value, moved], f"{name}_mm")
        return self.node("Add", [product, self.bias(f"{name}_b", sizes[1])], name)

    def model(self, output: str) -> ir.Model:
        graph = helper.make_graph(
            self.nodes,
            "part",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            self.tensors,
        )
        opsets = [helper.make_opsetid("", 20)]
        proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))


def block() -> ir.Model:
    """A transformer's MLP with its residual: two quantized linears around a GELU."""
    graph = Graph([2, 6, 8])
    ones = graph.constant("gamma", np.ones(8, np.float32))
    norm = graph.node("LayerNormalization", ["x", ones, graph.bias("beta", 8)], "norm", axis=-1)
    wide = graph.linear(graph.pair(norm, 0.02), "fc1", (8, 16))
    active = graph.node("Gelu", [wide], "gelu")
    narrow = graph.linear(graph.pair(active, 0.03), "fc2", (16, 8))
    return graph.model(graph.node("Add", ["x", narrow], "y"))


def gemm() -> ir.Model:
    """A linear of rank 2, as the exporter writes it."""
    graph = Graph([5, 8])
    weight = graph.weight("w", (4, 8), 0)
    inputs = [graph.pair("x", 0.02), weight, graph.bias("b", 4)]
    return graph.model(graph.node("Gemm", inputs, "y", transB=1))


def pyramid() -> ir.Model:
    """A level of the neck: transposed convolution, 1 x 1 and 3 x 3 with a quantized link."""
    graph = Graph([2, 4, 3, 5])
    weight = graph.weight("up_w", (4, 6, 2, 2), 1)
    given = [graph.pair("x", 0.02), weight, graph.bias("up_b", 6)]
    up = graph.node("ConvTranspose", given, "up", strides=[2, 2], kernel_shape=[2, 2])
    given = [graph.pair(up, 0.03), graph.weight("one_w", (5, 6, 1, 1), 0), graph.bias("one_b", 5)]
    one = graph.node("Conv", given, "one", kernel_shape=[1, 1])
    given = [graph.pair(one, 0.03), graph.weight("two_w", (3, 5, 3, 3), 0), graph.bias("two_b", 3)]
    return graph.model(graph.node("Conv", given, "y", kernel_shape=[3, 3], pads=[1, 1, 1, 1]))


MODELS = {"block": block, "gemm": gemm, "pyramid": pyramid}


def spec_of(model: ir.Model) -> PartSpec:
    def tensor(value: ir.Value) -> TensorSpec:
        assert value.dtype is not None
        assert value.shape is not None
        axes = tuple(axis for axis in value.shape if isinstance(axis, int))
        return TensorSpec(name=value.name or "", dtype=value.dtype.numpy().name, shape=axes)

    return PartSpec(
        name="part",
        inputs=tuple(map(tensor, model.graph.inputs)),
        outputs=tuple(map(tensor, model.graph.outputs)),
    )


def image(model: ir.Model) -> dict[str, np.ndarray]:
    (given,) = spec_of(model).inputs
    return {given.name: np.random.default_rng(1).normal(size=given.shape).astype(given.dtype)}


def saved(model: ir.Model, folder: Path, name: str = "part") -> Path:
    path = folder / f"{name}.onnx"
    save_onnx(model, path)
    return path


def run(model: ir.Model, folder: Path) -> np.ndarray:
    """What ONNX Runtime gives."""
    session = OnnxRuntimeSession(saved(model, folder), spec_of(model))
    (result,) = session.run(image(model)).values()
    return result


def by_definition(model: ir.Model) -> np.ndarray:
    """What the onnx package's reference gives: operator by operator, no optimizer."""
    from onnx.reference import ReferenceEvaluator

    (result,) = ReferenceEvaluator(ir.to_proto(model)).run(None, dict(image(model)))
    return np.asarray(result)


def sqnr_db(wanted: np.ndarray, found: np.ndarray) -> float:
    noise = np.mean(np.square(wanted - found, dtype=np.float64))
    return float(10 * np.log10(np.mean(np.square(wanted, dtype=np.float64)) / max(noise, 1e-30)))


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


# --- reading Q/DQ


@pytest.mark.parametrize(("name", "count"), [("block", 2), ("gemm", 1), ("pyramid", 3)])
def test_quantized_layers_are_found(name: str, count: int) -> None:
    layers = quantized_layers(MODELS[name]())
    assert len(layers) == count
    for layer in layers:
        assert layer.bias is not None
        weight = layer.read_weight()
        assert weight.integers.dtype == np.int8
        assert weight.scales.size == weight.integers.shape[weight.axis] == layer.bias.size


def test_a_float_layer_is_none() -> None:
    graph = Graph([2, 8])
    weight = graph.constant("w", np.ones((8, 4), np.float32))
    assert quantized_layers(graph.model(graph.node("MatMul", ["x", weight], "y"))) == ()


def test_weights_are_stored_as_they_are_read() -> None:
    model = block()
    wanted = by_definition(model)
    before = {layer.path: layer.read_weight().integers for layer in quantized_layers(model)}
    fold_weight_transposes(model)
    assert "Transpose" not in operators(model)
    for layer in quantized_layers(model):
        weight = layer.read_weight()
        assert np.array_equal(weight.integers, before[layer.path].T)
        assert weight.axis == 1
    assert np.array_equal(by_definition(model), wanted)


# --- uint8 x int8

VNNI = pytest.mark.skipif(
    products_saturate(),
    reason="this processor has no VNNI instructions: its 8-bit products saturate",
)


@VNNI
@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("block", {"MatMulIntegerToFloat": 2}),
        ("gemm", {"MatMulIntegerToFloat": 1}),
        ("pyramid", {"MatMulIntegerToFloat": 2, "QLinearConv": 1}),
    ],
)
def test_u8s8_computes_what_the_graph_says(
    name: str, found: Mapping[str, int], tmp_path: Path
) -> None:
    wanted = by_definition(MODELS[name]())
    model = to_u8s8(MODELS[name]())
    for operator, count in found.items():
        assert operators(model).count(operator) == count
    assert not {"MatMul", "Gemm", "Conv", "ConvTranspose"} & set(operators(model))
    assert model.metadata_props[INTEGER_NOTE] == str(sum(found.values()))
    assert model.metadata_props[FLOAT_NOTE] == ""
    # Integers multiply exactly; what differs is the order of a few float operations, and now and
    # then a value that is rounded to the next step behind them.
    difference = np.abs(run(model, tmp_path) - wanted)
    assert np.median(difference) < 1e-6
    assert difference.max() < 0.05


def test_zero_points_move_and_scales_stay() -> None:
    model = to_u8s8(block())
    for node in model.graph:
        if node.op_type == "QuantizeLinear":
            scale, zero = (value.const_value.numpy() for value in node.inputs[1:])
            assert zero.dtype == np.uint8
            assert int(zero) == 128
            assert float(scale) in {np.float32(0.02), np.float32(0.03)}
            assert node.outputs[0].dtype == ir.DataType.UINT8


def test_u8s8_says_which_layers_stay_float(tmp_path: Path) -> None:
    graph = Graph([1, 4, 8, 8])
    weight = graph.weight("w", (3, 4, 4, 4), 0)
    model = graph.model(graph.node("Conv", [graph.pair("x", 0.02), weight], "y", strides=[4, 4]))
    floats = by_definition(graph.model("y"))
    to_u8s8(model)
    assert model.metadata_props[INTEGER_NOTE] == "0"
    assert model.metadata_props[FLOAT_NOTE] == (
        "node_y: only convolutions of stride 1 without groups or dilation become products"
    )
    assert operators(model) == ["Conv"]
    # Its input is not rounded any more: within half a step of 0.02 of what it was.
    assert np.abs(run(model, tmp_path) - floats).max() < 0.05


@VNNI
def test_a_known_output_range_takes_the_kernel(tmp_path: Path) -> None:
    wanted = by_definition(pyramid())
    scale = float(np.abs(wanted).max() / 127)
    model = to_u8s8(pyramid(), output_scales={"y": scale})
    assert operators(model).count("QLinearConv") == 2
    assert np.abs(run(model, tmp_path) - wanted).max() <= scale * 1.01


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags : sse2 avx avx2", True),
        ("flags : avx2 avx_vnni", False),
        ("flags : avx2 avx512f avx512_vnni", False),
        ("Features : asimd asimddp", False),
    ],
)
def test_processors_that_saturate_are_named(
    flags: str, expected: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(flags)
    assert products_saturate(cpuinfo) == expected
    assert not products_saturate(tmp_path / "gone")
    monkeypatch.setattr(cpu, "products_saturate", lambda: products_saturate(cpuinfo))
    model = to_u8s8(gemm())
    processor = OnnxRuntimeSession(saved(model, tmp_path), spec_of(model)).processor
    words = "without VNNI instructions its 8-bit products may saturate"
    assert processor.endswith(f"({words})") == expected
    monkeypatch.setattr(openvino_backend, "products_saturate", lambda: products_saturate(cpuinfo))
    floating = gemm()
    for layer in quantized_layers(floating):
        restore(floating, layer)
    for model, integers in ((to_openvino(gemm()), True), (floating, False)):
        quantized = OpenVinoSession(saved(model, tmp_path), spec_of(model))
        assert quantized.processor.endswith(f"({words})") == (expected and integers)


# --- did it really?


def test_integer_kernels_are_read_back(tmp_path: Path) -> None:
    for name, make in MODELS.items():
        model = to_u8s8(make())
        path, out = saved(model, tmp_path), tmp_path / "optimized.onnx"
        optimized_from_onnx(path, out)
        found = integer_nodes(ir.load(out))
        count = check_integer_kernels(name, "ONNX Runtime", intended_layers(model), found)
        assert str(count) == model.metadata_props[INTEGER_NOTE]


def test_a_silent_fallback_is_an_error(tmp_path: Path) -> None:
    # ONNX Runtime's own patterns fail on the plain graph: an int8 product with its bias is a Gemm.
    model = gemm()
    path, out = saved(model, tmp_path), tmp_path / "optimized.onnx"
    optimized_from_onnx(path, out)
    with pytest.raises(BuildError) as caught:
        check_integer_kernels(
            "text", "ONNX Runtime", intended_layers(model), integer_nodes(ir.load(out))
        )
    assert str(caught.value).startswith(
        "ONNX Runtime runs 1 of 1 quantized layers of text in float: node_y. Nothing was published."
    )


@VNNI
def test_openvino_multiplies_integers(tmp_path: Path) -> None:
    for name in ("block", "gemm"):
        model = to_openvino(MODELS[name]())
        wanted = by_definition(model)
        session = OpenVinoSession(saved(model, tmp_path), spec_of(model))
        (found,) = session.run(image(model)).values()
        assert sqnr_db(wanted, found) > 40
        layers = integer_layers((layer.precision, layer.names) for layer in session.layers())
        assert check_integer_kernels(name, "OpenVINO", intended_layers(model), layers) >= 1


def test_transposed_convolutions_are_float_in_openvino() -> None:
    model = to_openvino(pyramid())
    assert [layer.node.op_type for layer in quantized_layers(model)] == ["Conv", "Conv"]
    assert model.metadata_props[FLOAT_NOTE] == (
        "node_up: OpenVINO may compute transposed convolutions in float"
    )


# --- half


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("plan", [SAFE, TENSORRT, Plan(gelu="half", layer_norm="half")])
def test_half_is_close_and_well_typed(name: str, plan: Plan, tmp_path: Path) -> None:
    wanted = by_definition(MODELS[name]())
    model = cast_half(MODELS[name](), plan)
    assert_typed(model)
    found = run(model, tmp_path)
    assert found.dtype == np.float32
    assert sqnr_db(wanted, found) > 38


def assert_typed(model: ir.Model) -> None:
    """Scales have the type of what they scale, casts are needed, products are half."""
    for node in model.graph:
        if node.op_type == "QuantizeLinear":
            assert node.inputs[1].dtype == node.inputs[0].dtype
        elif node.op_type == "DequantizeLinear":
            assert node.inputs[1].dtype == node.outputs[0].dtype
        elif node.op_type == "Cast":
            assert node.inputs[0].dtype != node.outputs[0].dtype
            before = node.inputs[0].producer()
            assert before is None or before.op_type != "Cast"
        elif node.op_type in {"MatMul", "Gemm", "Conv", "ConvTranspose"}:
            assert {value.dtype for value in (*node.inputs[:2], *node.outputs)} == {HALF}


def test_the_plan_decides() -> None:
    model = cast_half(block(), SAFE)
    types = {node.op_type: node.outputs[0].dtype for node in model.graph}
    assert types["LayerNormalization"] == types["Gelu"] == FLOAT
    assert [n.outputs[0].dtype for n in model.graph if n.op_type == "Add"] == [HALF, HALF, FLOAT]
    model = cast_half(block(), Plan(gelu="half", layer_norm="half", residual="half"))
    types = {node.op_type: node.outputs[0].dtype for node in model.graph}
    assert types["LayerNormalization"] == types["Gelu"] == HALF


def test_integers_and_weights() -> None:
    before = {layer.path: layer.read_weight().integers for layer in quantized_layers(block())}
    for layer in quantized_layers(cast_half(block())):
        assert np.array_equal(layer.read_weight().integers, before[layer.path])
    graph = Graph([2, 8])
    weight = graph.constant("w", np.full((8, 4), 0.1, np.float32))
    model = cast_half(graph.model(graph.node("MatMul", ["x", weight], "y")))
    assert [v.dtype for v in model.graph.initializers.values()] == [HALF]
    assert operators(model) == ["Cast", "MatMul", "Cast"]


def test_both_sides_of_a_pair_have_one_number() -> None:
    for node in cast_half(block()).graph:
        if node.op_type == "QuantizeLinear":
            (reader,) = node.outputs[0].consumers()
            scales = [float(one.inputs[1].const_value.numpy()) for one in (node, reader)]
            assert scales[0] == scales[1] == float(np.float16(scales[0]))


def test_scales_that_half_cannot_hold(tmp_path: Path) -> None:
    """Per-channel scales near 1e-6 would be denormal, or zero: those channels are rounded again."""

    def small() -> ir.Model:
        graph = Graph([2, 6, 8])
        return graph.model(graph.linear(graph.pair("x", 0.02), "y", (8, 16), scale=1e-3))

    original = quantized_layers(small())[0].read_weight()
    assert original.scales.max() < 2.0**-14
    model = cast_half(small())
    fitted = quantized_layers(model)[0].read_weight()
    assert fitted.scales.min() >= 2.0**-14
    assert np.abs(fitted.floats - original.floats).max() <= 2.0**-15
    assert sqnr_db(by_definition(small()), run(model, tmp_path)) > 40


def test_activation_scales_that_half_cannot_hold_stay_float(tmp_path: Path) -> None:
    graph = Graph([2, 8])
    tiny = graph.node("Mul", ["x", graph.constant("factor", np.float32(1e-5))], "tiny")
    model = cast_half(graph.model(graph.linear(graph.pair(tiny, 1e-7), "y", (8, 4))))
    for node in model.graph:
        if (
            node.op_type in {"QuantizeLinear", "DequantizeLinear"}
            and node.inputs[1].const_value.size == 1
        ):
            scale = node.inputs[1].const_value.numpy()
            assert scale.dtype == np.float32
            assert scale == np.float32(1e-7)


def test_masks(tmp_path: Path) -> None:
    graph = Graph([2, 4, 8])
    keys = graph.node("Transpose", ["x"], "keys", perm=[0, 2, 1])
    scores = graph.node("MatMul", ["x", keys], "scores")
    mask = np.where(np.tri(4), 0, np.finfo(np.float32).min).astype(np.float32)
    masked = graph.node("Add", [scores, graph.constant("mask", mask)], "masked")
    weights = graph.node("Softmax", [masked], "weights", axis=-1)
    original = graph.model(graph.node("MatMul", [weights, "x"], "y"))
    wanted = by_definition(original)
    model = cast_half(original, TENSORRT)
    masks = [v for v in model.graph.initializers.values() if "mask" in (v.name or "")]
    assert [np.unique(v.const_value.numpy()).tolist() for v in masks] == [[-10000.0, 0.0]]
    core = [n for n in model.graph if n.op_type in {"MatMul", "Add", "Softmax"}]
    assert {node.outputs[0].dtype for node in core} == {HALF}
    assert sqnr_db(wanted, run(model, tmp_path)) > 50


def test_half_interface(tmp_path: Path) -> None:
    wanted = by_definition(block())
    model = cast_half(block(), interface="half")
    assert model.graph.inputs[0].dtype == model.graph.outputs[0].dtype == HALF
    found = run(model, tmp_path)
    assert found.dtype == np.float16
    assert sqnr_db(wanted, found.astype(np.float32)) > 38


def test_kept_layers_stay_float() -> None:
    model = cast_half(block(), keep=("node_fc1*",))
    types = [n.outputs[0].dtype for n in model.graph if n.op_type == "MatMul"]
    assert types == [FLOAT, HALF]


def test_bad_settings() -> None:
    with pytest.raises(SettingError, match=r"keep 'layers\.9\.\*' matches no layer\. Layers: node"):
        cast_half(block(), keep=("layers.9.*",))
    with pytest.raises(SettingError, match=r"interface is half or float, got 'fp16'\."):
        cast_half(block(), interface="fp16")
    with pytest.raises(SettingError, match=r"plan\.softmax is half or float, got 'bf16'\."):
        Plan(softmax="bf16")


# --- FP8


def test_e4m3_by_hand() -> None:
    model = to_e4m3(gemm())
    (quantize,) = [node for node in model.graph if node.op_type == "QuantizeLinear"]
    assert quantize.outputs[0].dtype == ir.DataType.FLOAT8E4M3FN
    # 0.02 is amax / 127.5: amax is 2.55, and 448 steps reach as far.
    assert quantize.inputs[1].const_value.numpy() == pytest.approx(2.55 / 448)
    layer = quantized_layers(gemm())[0].read_weight()
    (weight,) = [n for n in model.graph if n.op_type == "DequantizeLinear" and "w" in n.name][:1]
    stored = weight.inputs[0].const_value.numpy().astype(np.float32)
    scales = weight.inputs[1].const_value.numpy()
    assert np.allclose(scales, layer.scales * 127 / 448)
    assert np.abs(stored).max() <= 448
    # Three bits of mantissa: a sixteenth of a value at most, and half the smallest step below.
    error = np.abs(stored * scales[:, None] - layer.floats)
    assert (error <= np.maximum(np.abs(layer.floats) / 16, scales[:, None] * 2**-10)).all()


def test_e4m3_takes_float_weights() -> None:
    original = quantized_layers(gemm())[0].read_weight()
    shifted = original.floats * 1.001
    model = to_e4m3(gemm(), {"w": shifted})
    weight = next(
        n for n in model.graph if n.op_type == "DequantizeLinear" and n.name == "node_w_dq"
    )
    scales = weight.inputs[1].const_value.numpy()[:, None]
    wanted = (shifted / scales).clip(-448, 448).astype(ml_dtypes.float8_e4m3fn)
    assert np.array_equal(weight.inputs[0].const_value.numpy(), wanted)


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("half", ["no", "after", "before"])
def test_e4m3_runs_and_says_how(name: str, half: str, tmp_path: Path) -> None:
    wanted = by_definition(MODELS[name]())
    model = MODELS[name]()
    if half == "before":
        cast_half(model, TENSORRT)
    to_e4m3(model)
    if half == "after":
        cast_half(model, TENSORRT)
    path = saved(model, tmp_path)
    reason = "FP8 is emulated operator by operator: slow, for checking"
    assert notes_from_onnx(path)["samforge.onnxruntime.unoptimized"] == reason
    session = OnnxRuntimeSession(path, spec_of(model))
    assert session.processor.endswith(f"({reason})")
    (found,) = session.run(image(model)).values()
    assert sqnr_db(wanted, found) > 15


# --- weights only


def test_weights_to_int8_by_hand(tmp_path: Path) -> None:
    graph = Graph([3, 64])
    weights = np.random.default_rng(3).normal(size=(64, 32)).astype(np.float32)
    weights[:, 5] = 0
    matrix = graph.constant("w", weights)
    original = graph.model(graph.node("MatMul", ["x", matrix], "y"))
    wanted = by_definition(original)
    model = weights_to_int8(original)
    (node,) = [node for node in model.graph if node.op_type == "DequantizeLinear"]
    integers, scales = (value.const_value.numpy() for value in node.inputs)
    assert node.attributes.get_int("axis", 9) == 1
    assert integers.dtype == np.int8
    assert np.array_equal(np.abs(integers).max(axis=0), np.where(np.arange(32) == 5, 0, 127))
    assert np.abs(integers * scales - weights).max() <= np.abs(weights).max() / 254 * 1.001
    assert saved(model, tmp_path).stat().st_size < weights.nbytes / 2.5
    assert sqnr_db(wanted, run(model, tmp_path)) > 40


def test_weights_to_int8_leaves_what_is_small_or_shared() -> None:
    graph = Graph([3, 32])
    small = graph.constant("small", np.ones((32, 32), np.float32)[:, :16])
    assert "DequantizeLinear" not in operators(
        weights_to_int8(graph.model(graph.node("MatMul", ["x", small], "y")))
    )
    graph = Graph([32, 64])
    shared = graph.constant("shared", np.ones((64, 64), np.float32))
    product = graph.node("MatMul", ["x", shared], "product")
    total = graph.node("MatMul", [shared, graph.node("Transpose", [product], "t")], "total")
    assert "DequantizeLinear" not in operators(weights_to_int8(graph.model(total)))


# --- embedding tables


class Lookup(Graph):
    """Looks rows of a table up by the tokens of two phrases."""

    tokens = np.array([[0, 2, 2, 5], [7, 5, 1, 0]])

    def __init__(self) -> None:
        super().__init__([2, 4])

    def model(self, output: str) -> ir.Model:
        proto = helper.make_model(
            helper.make_graph(
                self.nodes,
                "part",
                [helper.make_tensor_value_info("tokens", TensorProto.INT64, self.shape)],
                [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
                self.tensors,
            ),
            opset_imports=[helper.make_opsetid("", 20)],
            ir_version=10,
        )
        return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))


def rows(count: int = 8, channels: int = 128) -> np.ndarray:
    """A table whose rows have sizes of their own; row 5 is zeros."""
    random = np.random.default_rng(4)
    table = random.normal(size=(count, channels)) * random.uniform(0.01, 10, (count, 1))
    table[5] = 0
    return table.astype(np.float32)


def looked_up(table: np.ndarray) -> ir.Model:
    graph = Lookup()
    return graph.model(graph.node("Gather", [graph.constant("table", table), "tokens"], "y"))


def run_lookup(model: ir.Model, folder: Path) -> np.ndarray:
    session = OnnxRuntimeSession(saved(model, folder), spec_of(model))
    (result,) = session.run({"tokens": Lookup.tokens}).values()
    return result


def initializers(model: ir.Model) -> dict[str, np.ndarray]:
    return {
        name: value.const_value.numpy()
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    }


def test_embeddings_by_hand(tmp_path: Path) -> None:
    table = np.zeros((8, 128), np.float32)
    table[0, :3] = [254, -2, 1.2]  # a step of 2: 127, -1 and 0.6, which becomes 1
    table[2, :2] = [-1.27, 0.5]  # a step of 0.01
    table[7, 127] = 3e-6
    model = embeddings_to_int8(looked_up(table))
    assert operators(model) == ["Gather", "Gather", "Cast", "Mul"]
    assert model.metadata_props[TABLES_NOTE] == "table"
    stored = initializers(model)
    assert {name: (array.dtype, array.shape) for name, array in stored.items()} == {
        "table_int8": (np.int8, (8, 128)),
        "table_scales": (np.float32, (8, 1)),
    }
    assert stored["table_int8"][0, :4].tolist() == [127, -1, 1, 0]
    assert stored["table_int8"][2, :3].tolist() == [-127, 50, 0]
    assert not stored["table_int8"][[1, 3, 4, 5, 6]].any()
    wanted = table.copy()
    wanted[0, 2] = 2
    np.testing.assert_allclose(run_lookup(model, tmp_path), wanted[Lookup.tokens], rtol=1e-6)


def test_an_embedding_moves_by_half_a_step_of_its_row(tmp_path: Path) -> None:
    table = rows()
    model = embeddings_to_int8(looked_up(table))
    stored = initializers(model)
    steps = np.abs(table).max(axis=1, keepdims=True) / 127
    restored = stored["table_int8"] * stored["table_scales"]
    assert (np.abs(restored - table) <= steps / 2 * 1.0001).all()
    assert np.isfinite(restored).all()
    found = run_lookup(model, tmp_path)
    assert found.shape == (2, 4, 128)
    assert np.array_equal(found, restored[Lookup.tokens])
    assert sqnr_db(run_lookup(looked_up(table), tmp_path), found) > 40
    sizes = [saved(one, tmp_path).stat().st_size for one in (model, looked_up(rows()))]
    assert sizes[0] / sizes[1] < 0.45  # the graph itself is small, and not nothing


def test_runtimes_keep_the_table_in_int8(tmp_path: Path) -> None:
    table = rows(4096)
    model = embeddings_to_int8(looked_up(table))
    path, out = saved(model, tmp_path), tmp_path / "optimized.onnx"
    optimized_from_onnx(path, out)
    kept = initializers(ir.load(out))
    (stored,) = [array for array in kept.values() if array.shape == table.shape]
    assert stored.dtype == np.int8
    assert sum(array.nbytes for array in kept.values()) == table.size + 4 * len(table)

    session = OpenVinoSession(path, spec_of(model))
    (found,) = session.run({"tokens": Lookup.tokens}).values()
    np.testing.assert_allclose(found, run_lookup(model, tmp_path), rtol=1e-6)
    gathers = [layer.precision for layer in session.layers() if layer.operator == "Gather"]
    assert sorted(gathers) == ["f32", "i8"]  # scales and rows


@pytest.mark.parametrize("axis", [0, -2])
def test_lookups_share_their_table(axis: int, tmp_path: Path) -> None:
    graph = Lookup()
    table = graph.constant("table", rows())
    first = graph.node("Gather", [table, "tokens"], "first", axis=axis)
    flat = graph.node("Reshape", ["tokens", graph.constant("flat", np.array([4, 2]))], "flat_ids")
    second = graph.node("Gather", [table, flat], "second", axis=axis)
    back = graph.node("Reshape", [second, graph.constant("back", np.array([2, 4, 128]))], "back_y")
    model = embeddings_to_int8(graph.model(graph.node("Sub", [first, back], "y")))
    assert operators(model).count("Gather") == 4
    stored = [array for array in initializers(model).values() if array.size >= 8]
    assert sorted((array.dtype.name, array.shape) for array in stored) == [
        ("float32", (8, 1)),
        ("int8", (8, 128)),
    ]
    assert not run_lookup(model, tmp_path).any()


def test_embeddings_leave_what_is_no_large_table() -> None:
    graph = Lookup()
    table = graph.constant("table", rows())
    columns = graph.node("Gather", [table, "tokens"], "y", axis=1)
    models = [looked_up(rows(8, 127)), graph.model(columns)]  # 1016 values
    graph = Lookup()  # a table that a product reads too
    table = graph.constant("table", rows())
    found = graph.node("Gather", [table, "tokens"], "found")
    turned = graph.node("Transpose", [table], "turned", perm=[1, 0])
    models.append(graph.model(graph.node("MatMul", [found, turned], "y")))
    graph = Lookup()  # a table that is computed
    floats = graph.node("Cast", ["tokens"], "floats", to=TensorProto.FLOAT)
    wide = graph.constant("wide", np.ones((4, 512), np.float32))
    table = graph.node("MatMul", [floats, wide], "table")
    models.append(graph.model(graph.node("Gather", [table, graph.constant("i", [0, 1])], "y")))
    graph = Lookup()  # matrices are looked up, not rows
    table = graph.constant("table", rows(64).reshape(8, 8, 128))
    models.append(graph.model(graph.node("Gather", [table, "tokens"], "y")))
    for model in models:
        before = operators(model), list(initializers(model))
        embeddings_to_int8(model)
        assert (operators(model), list(initializers(model))) == before
        assert TABLES_NOTE not in model.metadata_props


@pytest.mark.parametrize(
    ("target", "precision", "stored"),
    [
        ("onnxruntime", "fp32", "float32"),
        ("onnxruntime", "fp16", "float32"),
        ("onnxruntime", "int8", "int8"),
        ("onnxruntime", "fp8", "int8"),
        ("onnxruntime", "int8-weights", "int8"),
        ("openvino", "bf16", "float32"),
        ("openvino", "int8", "int8"),
        ("openvino", "int8-weights", "int8"),
        ("tensorrt", "fp8", "float32"),
        ("tensorrt-rtx", "int8", "float32"),
    ],
)
def test_flavours_with_int8_tables(
    target: str, precision: str, stored: str, tmp_path: Path
) -> None:
    table = rows()
    recipe = Recipe(target=target, precision=precision)
    model = flavoured(looked_up(table), recipe)
    kinds = {array.dtype.name for array in initializers(model).values() if array.size == table.size}
    assert kinds == {stored}
    found = run_lookup(model, tmp_path)
    assert found.dtype == np.float32
    assert np.abs(found - table[Lookup.tokens]).max() <= np.abs(table).max() / 254 * 1.0001


def test_embeddings_are_no_integer_layers(tmp_path: Path) -> None:
    graph = Lookup()
    table = graph.constant("table", rows())
    found = graph.node("Gather", [table, "tokens"], "found")
    model = graph.model(graph.linear(graph.pair(found, 0.02), "y", (128, 16)))
    to_u8s8(embeddings_to_int8(model))
    path, out = saved(model, tmp_path), tmp_path / "optimized.onnx"
    optimized_from_onnx(path, out)
    assert model.metadata_props[INTEGER_NOTE] == "1"
    intended, found_names = intended_layers(model), integer_nodes(ir.load(out))
    assert check_integer_kernels("text", "ONNX Runtime", intended, found_names) == 1


# --- notes in the file


def test_notes_of_other_files(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    assert notes_from_onnx(path) == {}
    for content in (b"", b"not a model", b"\x72\xff\xff\xff\xff\x0f", bytes(range(256))):
        path.write_bytes(content)
        assert notes_from_onnx(path) == {}


def test_notes_are_those_onnx_writes(tmp_path: Path) -> None:
    model = block()
    model.metadata_props.update({"a": "b" * 300, "grün": "", "empty": "x"})
    path = saved(model, tmp_path)
    written = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert notes_from_onnx(path) == written == model.metadata_props


def test_threads_of_a_session_rest_between_its_runs() -> None:
    options = session_options({})
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"
