"""OpenVINO's options: precision, threads, hint, cache; and what it says of itself."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import openvino
import pytest

from samforge.backends import backend_from_name
from samforge.backends.openvino import OPTIONS, OpenVinoSession
from samforge.core.errors import MissingExtra, SettingError
from samforge.core.session import checked_options
from samforge.core.structure import json_from_value
from samforge.transform.onnx.convolution_sums import larger_first

Make = Callable[..., Any]
BACKEND = backend_from_name("openvino")


@pytest.fixture(scope="module")
def load(part: Make, onnx_file: Make) -> Make:
    """Loads the text part with options."""

    def make(options: Mapping[str, str] | None = None, **settings: Any) -> Any:
        return BACKEND.session_from_artifact(
            onnx_file("text"), part("text").spec, options=options, **settings
        )

    return make


@pytest.fixture(scope="module")
def inputs(example: Make) -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in example("text", {"prompts": 3}).items()}


@pytest.fixture(scope="module")
def reference(load: Make, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = load()
    found: dict[str, np.ndarray] = session.run(inputs)
    return found


def has_bf16() -> bool:
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc").exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def test_fp32_layers_are_fp32(load: Make) -> None:
    """OpenVINO's own default would take bf16 where the processor has it: a silent change."""
    layers = load().layers()
    products = [layer for layer in layers if layer.operator == "FullyConnected"]
    assert products
    assert {layer.precision for layer in products} == {"f32"}
    assert all(layer.names for layer in products)


@pytest.mark.skipif(not has_bf16(), reason="this processor has no bf16")
def test_bf16_layers_are_bf16(
    load: Make, inputs: dict[str, np.ndarray], reference: dict[str, np.ndarray]
) -> None:
    session = load({"precision": "bf16"})
    products = [layer for layer in session.layers() if layer.operator == "FullyConnected"]
    assert {layer.precision for layer in products} == {"bf16"}
    found = session.run(inputs)["text_features"]
    wanted = reference["text_features"]
    difference = np.abs(found - wanted).max() / np.abs(wanted).max()
    assert 1e-6 < difference < 0.05


@pytest.mark.parametrize("hint", ["latency", "throughput"])
def test_hints_and_threads(
    load: Make, inputs: dict[str, np.ndarray], reference: dict[str, np.ndarray], hint: str
) -> None:
    session = load({"hint": hint}, threads=1)
    assert session.processor == "CPU, 1 threads"
    found = session.run(inputs)
    for name, array in reference.items():
        assert np.allclose(found[name], array, atol=1e-5)


def test_the_cache_is_filled_and_used(
    load: Make, inputs: dict[str, np.ndarray], reference: dict[str, np.ndarray], tmp_path: Path
) -> None:
    folder = tmp_path / "deep" / "cache"
    first = load({"cache": str(folder)}).run(inputs)
    files = {file.name: file.stat().st_size for file in folder.iterdir()}
    assert [size for name, size in files.items() if name.endswith(".blob")]
    again = load({"cache": str(folder)}).run(inputs)
    assert {file.name: file.stat().st_size for file in folder.iterdir()} == files
    for name, array in reference.items():
        assert np.allclose(first[name], array, atol=1e-5)
        assert np.array_equal(first[name], again[name])


def test_a_cache_that_cannot_be_made(load: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SettingError) as caught:
        load({"cache": str(tmp_path / "file" / "cache")})
    assert str(caught.value) == (
        f"OpenVINO's cache {tmp_path / 'file' / 'cache'} cannot be made: Not a directory. "
        "Choose a folder that can be written, or leave the option out."
    )


def test_options_are_checked() -> None:
    with pytest.raises(SettingError) as caught:
        checked_options("openvino", {"precision": "fp8"}, OPTIONS)
    assert str(caught.value) == (
        "openvino takes precision=fp32 or bf16 or int8 or int8-bf16, got 'fp8'."
    )
    assert checked_options("openvino", {"cache": "anywhere"}, OPTIONS) == {"cache": "anywhere"}
    assert checked_options("openvino", None, OPTIONS) == {}


SIGNALLED = """
import faulthandler, gc, signal, sys
from pathlib import Path
from samforge.backends import backend_from_name
from samforge.core.session import PartSpec
from samforge.core.structure import value_from_json
import json

faulthandler.enable()  # as pytest and many servers do: signal handlers get a stack of their own
spec = value_from_json(PartSpec, json.loads(sys.argv[2]))
load = backend_from_name("openvino").session_from_artifact
first, second = load(Path(sys.argv[1]), spec), load(Path(sys.argv[1]), spec)
first.close()
del first
gc.collect()
second.close()
del second
gc.collect()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_after_sessions_were_closed(part: Make, onnx_file: Make) -> None:
    """OpenVINO leaves signal handlers a stack that is gone: the interpreter died of Ctrl-C."""
    spec = json.dumps(json_from_value(part("text").spec))
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED, str(onnx_file("text")), spec],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


def test_without_openvino(monkeypatch: pytest.MonkeyPatch, part: Make, onnx_file: Make) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # what Python says of a module that is none
    with pytest.raises(MissingExtra) as caught:
        OpenVinoSession(onnx_file("text"), part("text").spec)
    assert str(caught.value) == (
        "OpenVINO is not installed. Run: pip install 'samforge[openvino]'."
    )


def two_projections(features: int, masks: int | str) -> ir.Model:
    """Sum of two 8-bit convolutions, one of features and one of masks, as the memory encoder has.

    Args:
        features: Batch of the first.
        masks: Batch of the second.
    """
    rng = np.random.default_rng(0)
    nodes, inputs, initializers = [], [], []

    def constant(name: str, array: Any) -> ir.Value:
        value = ir.val(name, const_value=ir.tensor(array, name=name))
        initializers.append(value)
        return value

    def node(
        operator: str, given: list[ir.Value], name: str, shape: ir.Shape | None = None
    ) -> ir.Value:
        made = ir.node(operator, given, outputs=[ir.val(name, ir.DataType.FLOAT, shape)])
        nodes.append(made)
        return made.outputs[0]

    def projection(name: str, batch: int | str) -> ir.Value:
        given = ir.val(name, ir.DataType.FLOAT, ir.Shape([batch, 16, 8, 8]))
        inputs.append(given)
        scale, zero = constant(f"{name}_s", np.float32(0.03)), constant(f"{name}_z", np.int8(0))
        rounded = ir.node(
            "QuantizeLinear",
            [given, scale, zero],
            outputs=[ir.val(f"{name}_q", ir.DataType.INT8)],
        )
        nodes.append(rounded)
        read = node("DequantizeLinear", [rounded.outputs[0], scale, zero], f"{name}_dq")
        # Small enough for processors whose products of 8 bits saturate.
        integers = rng.integers(-40, 41, (16, 16, 1, 1), dtype=np.int8)
        scales = rng.uniform(0.003, 0.006, 16).astype(np.float32)
        zeros = constant(f"{name}_wz", np.zeros(16, np.int8))
        stored = constant(f"{name}_w", integers), constant(f"{name}_ws", scales)
        weight = ir.node(
            "DequantizeLinear",
            [*stored, zeros],
            attributes={"axis": 0},
            outputs=[ir.val(f"{name}_wdq", ir.DataType.FLOAT)],
        )
        nodes.append(weight)
        bias = constant(f"{name}_b", rng.standard_normal(16).astype(np.float32))
        shape = ir.Shape([batch, 16, 8, 8])
        return node("Conv", [read, weight.outputs[0], bias], f"{name}_projected", shape)

    first, second = projection("features", features), projection("masks", masks)
    total = node("Add", [first, second], "sum", ir.Shape([masks, 16, 8, 8]))
    graph = ir.Graph(
        inputs, [total], nodes=nodes, initializers=initializers, opset_imports={"": 20}, name="sum"
    )
    return ir.Model(graph, ir_version=10)


def test_the_larger_of_two_summed_convolutions_comes_first(tmp_path: Path) -> None:
    """Turned, OpenVINO runs the graph with as many objects as come; the sum is the same."""
    model = two_projections(1, "objects")
    ir.save(model, tmp_path / "plain.onnx")
    assert larger_first(model) == ["sum"]
    ir.save(model, tmp_path / "turned.onnx")
    rng = np.random.default_rng(1)
    plain = onnxruntime.InferenceSession(tmp_path / "plain.onnx")
    turned = onnxruntime.InferenceSession(tmp_path / "turned.onnx")
    compiled = openvino.Core().compile_model(
        tmp_path / "turned.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    for objects in (1, 2, 7, 3):
        given = {
            "features": rng.standard_normal((1, 16, 8, 8)).astype(np.float32),
            "masks": rng.standard_normal((objects, 16, 8, 8)).astype(np.float32),
        }
        wanted = plain.run(None, given)[0]
        np.testing.assert_array_equal(turned.run(None, given)[0], wanted)
        np.testing.assert_allclose(compiled(given)["sum"], wanted, atol=0.02)


@pytest.mark.parametrize("batches", [(1, 1), ("objects", 1), ("objects", "objects")])
def test_other_sums_stay_as_they_are(batches: tuple[Any, Any]) -> None:
    assert larger_first(two_projections(*batches)) == []
