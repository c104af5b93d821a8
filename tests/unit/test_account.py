"""The account of weights: what it finds, and every fault that it must not overlook."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch

from samforge.core.errors import BuildError, FidelityError
from samforge.core.recipe import Quantization, Recipe
from samforge.models.loading import model_from_name
from samforge.steps.account import (
    converted_weights,
    digests_of,
    exported_weights,
    fused_weights,
    quantized_weights,
    settled,
)
from samforge.steps.context import BuildContext
from samforge.transform.account import Entry, account_for, counted, scale_bounds
from samforge.transform.export import exported_from_file
from samforge.transform.fuse import fuse
from samforge.transform.onnx.graph import constant
from samforge.transform.onnx.recorded import check_recorded, ranges_of, recorded_share
from samforge.transform.onnx.stored import integer_biases, stored_in_onnx
from samforge.transform.quantize import (
    Calibrated,
    CalibrationWarning,
    calibrate,
    check_ranges,
    evened_weights,
    quantized_from_calibrated,
)
from samforge.transform.quantize.report import report_from_calibrated

RNG = np.random.default_rng(5)
WEIGHT = RNG.standard_normal((6, 10), np.float32)
KERNEL = RNG.standard_normal((4, 3, 2, 2), np.float32)
BIAS = RNG.standard_normal(6, np.float32)


def form(array: Any, stored: Any, **names: Any) -> str:
    """What becomes of one tensor that is stored under another name."""
    (entry,) = account_for({"w": array}, {"other": stored}, **names)
    return entry.form


def int8(array: Any, axis: int = 0) -> Any:
    """Rounded to 127 steps of each channel's largest magnitude."""
    others = tuple(one for one in range(array.ndim) if one != axis)
    scale = np.abs(array).max(axis=others, keepdims=True) / 127
    return np.rint(array / scale).astype(np.int8)


FORMS: dict[str, tuple[Any, Any, str]] = {
    "as it was": (WEIGHT, WEIGHT.copy(), "equal"),
    "transposed": (WEIGHT, WEIGHT.T.copy(), "moved"),
    "flattened": (KERNEL, KERNEL.reshape(4, 12), "moved"),
    "a kernel as a matrix": (KERNEL, KERNEL.transpose(2, 3, 1, 0).reshape(12, 4), "moved"),
    "halved": (WEIGHT, WEIGHT.T.astype(np.float16), "float16"),
    "a mask in half": (
        np.array([0, -3.4e38], np.float32),
        np.array([0, -65504], np.float16),
        "float16",
    ),
    "bfloat16": (WEIGHT, WEIGHT.astype(ml_dtypes.bfloat16), "bfloat16"),
    "eight bits a row": (WEIGHT, int8(WEIGHT), "int8"),
    "eight bits, transposed": (WEIGHT, int8(WEIGHT).T.copy(), "int8"),
    "a kernel in eight bits": (KERNEL, int8(KERNEL).transpose(2, 3, 1, 0).reshape(12, 4), "int8"),
    "float8": (
        WEIGHT,
        (WEIGHT / np.abs(WEIGHT).max(1, keepdims=True) * 448).astype(ml_dtypes.float8_e4m3fn),
        "float8_e4m3fn",
    ),
    "back to float": (int8(WEIGHT), (int8(WEIGHT) * np.float32(0.02)).T.copy(), "float32"),
    "rows in another order": (WEIGHT, WEIGHT[[3, 1, 0, 5, 2, 4]], "equal, reordered"),
    "rows reordered, in eight bits": (WEIGHT, int8(WEIGHT)[[3, 1, 0, 5, 2, 4]], "int8, reordered"),
    "a bias for each cell": (BIAS, np.repeat(BIAS, 4), "repeated"),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_that_hold_every_number(name: str) -> None:
    array, stored, wanted = FORMS[name]
    assert form(array, stored) == wanted


def changed(array: Any, place: Any, value: Any) -> Any:
    """A copy with one number, or one row, changed."""
    copy = array.copy()
    copy[place] = value
    return copy


FAULTS: dict[str, tuple[Any, Any]] = {
    "one number off in its last bit": (
        WEIGHT,
        changed(WEIGHT, (2, 3), np.nextafter(WEIGHT[2, 3], np.float32(9))),
    ),
    "a row of zeros": (WEIGHT, changed(WEIGHT, 4, 0)),
    "NaN": (WEIGHT, changed(WEIGHT, (0, 0), np.nan)),
    "clipped": (WEIGHT, WEIGHT.clip(-1, 1)),
    "times 4": (WEIGHT, WEIGHT * 4),
    "another sign": (WEIGHT, -WEIGHT),
    "a half that was rounded twice": (WEIGHT, (WEIGHT * np.float32(1.001)).astype(np.float16)),
    "one integer off by one": (WEIGHT, changed(int8(WEIGHT), (1, 2), int8(WEIGHT)[1, 2] + 2)),
    "a row of integers that are zero": (WEIGHT, changed(int8(WEIGHT), 3, 0)),
    "integers of another weight": (WEIGHT, int8(WEIGHT[::-1] + 1)),
    "four bits": (WEIGHT, np.rint(int8(WEIGHT) / 16).astype(np.int8) * np.int8(16)),
    "a kernel turned over": (KERNEL, KERNEL[:, :, ::-1]),
    "a vector repeated the other way": (BIAS, np.tile(BIAS, 4)),
    "nothing of its size": (WEIGHT, WEIGHT[:5]),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_missing_weights(name: str) -> None:
    array, stored = FAULTS[name]
    assert form(array, stored) == "missing"


def test_rows_of_a_table_stay_in_their_order() -> None:
    table, other = WEIGHT, WEIGHT[[1, 0, 2, 3, 4, 5]]
    assert form(table, other) == "equal, reordered"
    assert form(table, other, exact=frozenset({"w"})) == "missing"
    assert form(table, int8(table), exact=frozenset({"w"})) == "int8"


def test_no_twin_stands_in_for_a_name_that_is_kept() -> None:
    ones = np.ones(6, np.float32)
    stored = {"norm1.weight": ones, "norm2.weight": ones * 4}
    found = account_for({"norm1.weight": ones, "norm2.weight": ones}, stored)
    assert [entry.form for entry in found] == ["equal", "missing"]
    assert counted(found) == {"equal": 1, "missing": 1}


def test_the_scale_that_a_row_was_rounded_with_lies_within_its_bounds() -> None:
    scale = np.abs(WEIGHT).max(1) / 127
    low, high = scale_bounds(WEIGHT, int8(WEIGHT).astype(np.float32), np.dtype(np.int8))
    assert (low <= scale).all()
    assert (scale <= high).all()
    assert (high / low < 1.05).all()


@pytest.fixture
def context(small_folder: Path, tmp_path: Path) -> BuildContext:
    recipe = Recipe(model=str(small_folder), target="onnxruntime", precision="fp32")
    return BuildContext(
        recipe=recipe, model=model_from_name(str(small_folder)), root=tmp_path, parts=("text",)
    )


def entries(found: Any) -> dict[str, str]:
    return {entry.name: entry.form for entry in found}


@pytest.mark.parametrize("name", ["vision", "text", "detector", "detector_boxes"])
def test_every_tensor_of_the_checkpoint_is_in_the_export(
    name: str, part: Callable[..., Any], checkpoint: Callable[..., Any], exported_file: Any
) -> None:
    own = part(name)
    program = exported_from_file(exported_file(name))
    found = entries(exported_weights(checkpoint("small").source, own, program))
    assert set(found) == set(own.origins) | set(own.folded)
    assert {kind for key, kind in found.items() if key in own.origins} == {"equal"}
    assert all("folded" in reason or "left out" in reason for reason in own.folded.values())
    held = set(own.module.state_dict()) - set(own.origins.values())
    assert all(one.startswith("class_token.") for one in held)


def test_an_export_that_lost_a_row_is_refused(
    part: Callable[..., Any],
    checkpoint: Callable[..., Any],
    exported_file: Any,
    context: BuildContext,
) -> None:
    program = exported_from_file(exported_file("text"))
    program.state_dict["token_embedding.weight"].data[7] = 0
    found = exported_weights(checkpoint("small").source, part("text"), program)
    with pytest.raises(FidelityError, match=r"export of text: 1 of \d+ .*token_embedding\.weight"):
        settled(context, "export", "text", found)
    assert not (context.root / "report").exists()


def test_fusions_are_named_for_what_they_change(exported_file: Any) -> None:
    program = exported_from_file(exported_file("text"))
    before = digests_of(program)
    found = entries(fused_weights(before, fuse(program, target="onnxruntime")))
    assert set(found) == set(before)
    assert found["layers.0.self_attn.q_proj.weight"] == ("attention-scale, parallel-linears")
    assert found["layers.0.self_attn.k_proj.bias"] == "parallel-linears"
    assert found["layers.0.mlp.fc1.weight"] == found["token_embedding.weight"] == "equal"
    assert "missing" not in found.values()


def test_what_a_fusion_does_not_own_up_to_is_missing(exported_file: Any) -> None:
    program = exported_from_file(exported_file("text"))
    before = digests_of(program)
    fused = fuse(program, target="onnxruntime")
    fused.program.state_dict["layers.0.mlp.fc1.bias"].data[0] += 1
    silent = replace(fused, results=tuple(replace(result, weights=()) for result in fused.results))
    found = entries(fused_weights(before, silent))
    assert found["layers.0.mlp.fc1.bias"] == "missing"
    assert found["layers.0.self_attn.q_proj.weight"] == "missing"
    assert found["layers.1.mlp.fc1.bias"] == "equal"


FOLDED_BY_EXPORTER = {
    "vision": {"embeddings.position_embeddings"},
    "text": set(),
    "detector": {
        f"decoder.decoder.{name}.weight"
        for name in ("query_embed", "reference_points", "presence_token")
    },
}


@pytest.mark.parametrize("name", FOLDED_BY_EXPORTER)
def test_every_tensor_is_in_the_onnx_file(name: str, exported_file: Any, onnx_file: Any) -> None:
    program = exported_from_file(exported_file(name))
    found = entries(converted_weights(program, onnx_file(name)))
    folded = {key for key, kind in found.items() if kind == "folded with other constants"}
    assert {kind for key, kind in found.items() if key not in folded} == {"equal", "moved"}
    # Nothing was fused here: what depends on weights alone is computed by the exporter.
    assert folded == FOLDED_BY_EXPORTER[name]
    stored = {key for key, value in program.state_dict.items() if isinstance(value, torch.Tensor)}
    assert len(found) > 0.9 * len(stored)


def zero_row(model: ir.Model) -> None:
    """A token's row of the table, which no sample needs to look up."""
    value = model.graph.initializers["token_embedding.weight"]
    value.const_value = ir.Tensor(changed(value.const_value.numpy(), 11, 0), name=value.name)


def other_copy(model: ir.Model) -> None:
    """What is read is another tensor; the right one lies unread beside it."""
    value = model.graph.initializers["token_embedding.weight"]
    other = constant(model, "copy", changed(value.const_value.numpy(), 11, 0))
    for node, index in tuple(value.uses()):
        node.replace_input_with(index, other)


def scaled_bias(model: ir.Model) -> None:
    value = model.graph.initializers["layers.1.mlp.fc2.bias"]
    value.const_value = ir.Tensor(value.const_value.numpy() * np.float32(1.01), name=value.name)


def one_weight(model: ir.Model) -> None:
    """One number of a product's weight, which the exporter stored under a name of its own."""
    value = next(
        value
        for value in model.graph.initializers.values()
        if value.const_value.numpy().ndim == 2 and value.name.startswith("val_")
    )
    array = value.const_value.numpy()
    value.const_value = ir.Tensor(changed(array, (0, 0), array[0, 0] + 0.5), name=value.name)


@pytest.mark.parametrize("plant", [zero_row, other_copy, scaled_bias, one_weight])
def test_faults_in_a_graph_are_found(
    plant: Callable[[ir.Model], None], exported_file: Any, onnx_file: Any, tmp_path: Path
) -> None:
    model = ir.load(onnx_file("text"))
    plant(model)
    ir.save(model, tmp_path / "text.onnx")
    program = exported_from_file(exported_file("text"))
    found = entries(converted_weights(program, tmp_path / "text.onnx"))
    assert list(found.values()).count("missing") == 1


def test_constants_of_a_graph_are_those_that_it_reads(onnx_file: Any, tmp_path: Path) -> None:
    shutil.copy(onnx_file("text"), tmp_path / "text.onnx")
    model = ir.load(tmp_path / "text.onnx")
    constant(model, "nobody", np.ones(3, np.float32))
    ir.save(model, tmp_path / "more.onnx")
    assert "nobody" not in stored_in_onnx(ir.load(tmp_path / "more.onnx"))
    assert "token_embedding.weight" in stored_in_onnx(ir.load(tmp_path / "more.onnx"))


def test_the_account_is_written_down(context: BuildContext) -> None:
    found = [Entry(name="a", form="equal", place="a"), Entry(name="b", form="scales")]
    report, figures = settled(context, "fuse", "text", found)
    assert figures == {"weights": 2, "forms": {"equal": 1, "scales": 1}}
    assert '"form": "scales"' in (context.root / report).read_text()


def quantized(*, scale: float = 0.1, quantize: bool = True) -> ir.Model:
    """One linear layer with Q/DQ in front of both of its inputs."""
    rows = ir.val("rows", dtype=ir.DataType.FLOAT, shape=ir.Shape([2, 10]))
    model = ir.Model(
        ir.Graph([rows], [], nodes=[], opset_imports={"": 20}, name="g"), ir_version=10
    )
    if quantize:
        steps = constant(model, "scale", np.array(scale, np.float32))
        zero = constant(model, "zero", np.array(0, np.int8))
        down = ir.node("QuantizeLinear", [rows, steps, zero])
        up = ir.node("DequantizeLinear", [down.outputs[0], steps, zero])
        marks = constant(model, "marks", int8(WEIGHT).T)
        scales = constant(model, "scales", np.full(6, 0.02, np.float32))
        weight = ir.node("DequantizeLinear", [marks, scales], {"axis": 1})
        nodes, given = [down, up, weight], [up.outputs[0], weight.outputs[0]]
    else:
        nodes, given = [], [rows, constant(model, "weight", WEIGHT.T)]
    product = ir.node("MatMul", given, name="fc")
    model.graph.extend([*nodes, product])
    model.graph.outputs.append(product.outputs[0])
    return model


RECORD = ({"path": "fc", "activation_range": 12.75},)


def test_ranges_are_those_of_the_record() -> None:
    assert ranges_of(quantized()) == {"fc": [pytest.approx(12.75)]}
    assert check_recorded("text", RECORD, quantized()) == 1
    assert check_recorded("text", RECORD, quantized(scale=0.1004)) == 1, "as half rounds it"


def test_a_graph_in_float_is_not_the_quantized_one() -> None:
    with pytest.raises(BuildError, match=r"1 of 1 layers of text .* in float in the graph: fc"):
        check_recorded("text", RECORD, quantized(quantize=False))
    assert check_recorded("text", RECORD, quantized(quantize=False), left=["fc"]) == 0


def test_a_weight_without_a_module_is_named_after_the_module_that_reads_it() -> None:
    record = ({"path": "fc.kernel_0", "activation_range": 12.75},)
    assert check_recorded("text", record, quantized()) == 1
    assert check_recorded("text", record, quantized(quantize=False), left=["fc"]) == 0
    with pytest.raises(BuildError, match=r"in float in the graph: fc\.kernel_0"):
        check_recorded("text", record, quantized(quantize=False))


def test_work_that_went_back_to_float_is_not_counted() -> None:
    record = [{"path": path, "share": 0.5} for path in ("fc", "conv")]
    assert recorded_share(record, quantized()) == 0.5
    assert recorded_share(record, quantized(quantize=False)) == 0


@pytest.mark.parametrize("scale", [0.4, 0.025, 0.102])
def test_a_scale_that_calibration_did_not_give(scale: float) -> None:
    with pytest.raises(BuildError, match=r"another range in the graph .* fc \(.*, calibrated to"):
        check_recorded("text", RECORD, quantized(scale=scale))


@pytest.fixture(scope="module")
def calibrated(exported_file: Any, example: Any) -> Calibrated:
    program = fuse(exported_from_file(exported_file("text")), target="onnxruntime").program
    sizes = {"prompts": 4}
    samples = [example("text", sizes, seed=seed) for seed in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)
        return calibrate(program, lambda: samples, part="text", settings=Quantization())


def test_every_tensor_is_in_the_quantized_program(calibrated: Calibrated) -> None:
    program = quantized_from_calibrated(calibrated, precision="int8").program
    evened = evened_weights(calibrated)
    found = entries(quantized_weights(calibrated.program, evened, program))
    assert "missing" not in found.values()
    assert found["layers.0.mlp.fc1.weight"] == "evened out, int8"
    assert found["layers.0.layer_norm2.weight"] == "evened out"
    assert found["token_embedding.weight"] == found["projection.bias"] == "equal"
    stored = {k for k, v in calibrated.program.state_dict.items() if isinstance(v, torch.Tensor)}
    assert set(found) == stored


def test_faults_of_the_quantizer(calibrated: Calibrated) -> None:
    program = quantized_from_calibrated(calibrated, precision="int8").program
    program.state_dict["layers.1.mlp.fc2.weight_int8"].data[3, 5] ^= 5
    evened = evened_weights(calibrated)
    evened["layers.0.layer_norm1.weight"] = evened["layers.0.layer_norm1.weight"] * 1.5
    found = entries(quantized_weights(calibrated.program, evened, program))
    lost = [name for name, kind in found.items() if kind == "missing"]
    assert lost == ["layers.0.layer_norm1.weight", "layers.1.mlp.fc2.weight"]


@pytest.mark.parametrize("factor", [4.0, 0.25])
def test_a_range_that_calibration_did_not_see(calibrated: Calibrated, factor: float) -> None:
    report = report_from_calibrated(calibrated, precision="int8")
    check_ranges(report)
    assert all(
        layer.activation_range == pytest.approx(layer.largest_seen, rel=1e-5)
        for layer in report.layers
    )
    site = calibrated.sites[2]
    scales = {**calibrated.input_scale, site.input: calibrated.input_scale[site.input] * factor}
    planted = replace(calibrated, input_scale=scales)
    with pytest.raises(BuildError, match=rf"another range than .* gave: {site.path} \("):
        check_ranges(report_from_calibrated(planted, precision="int8"))


def test_a_bias_in_32_bits_stands_for_its_numbers() -> None:
    steps = 0.5 * np.linspace(0.01, 0.06, 6, dtype=np.float32)
    integers = np.rint(BIAS / steps).astype(np.int32)
    model = quantized()
    scales = constant(model, "conv_scales", np.linspace(0.01, 0.06, 6, dtype=np.float32))
    half = constant(model, "half", np.array(0.5, np.float32))
    given = ir.val("x", dtype=ir.DataType.UINT8)
    bias = constant(model, "bias_int32", integers)
    inputs = [given, half, None, given, scales, None, half, None, bias]
    model.graph.append(ir.node("QLinearConv", inputs))
    ((name, found, found_steps),) = integer_biases(model)
    assert name == "bias_int32"
    assert (np.abs(found * found_steps - BIAS) <= 0.5001 * steps).all()
    assert not np.allclose(found * found_steps * 2, BIAS)
