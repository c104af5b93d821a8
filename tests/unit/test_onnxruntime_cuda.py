"""ONNX Runtime's sessions on a device: what can be shown without a GPU.

Binding, chaining and DLPack run with the processor as the device; errors of an installation are
those of this one, which has the package for processors.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from samforge.backends import backend_from_name
from samforge.backends.onnxruntime.cuda import DeviceBoundSession
from samforge.backends.onnxruntime.libraries import (
    LIBRARIES,
    PROVIDER,
    OtherWheel,
    missing_of,
    require_libraries,
    require_provider,
)
from samforge.backends.onnxruntime.placement import RECORD, check_placement
from samforge.backends.onnxruntime.session import ort, session_options
from samforge.core.errors import EngineError, MissingExtra, SettingError, ShapeError
from samforge.core.session import PartSpec, TensorSpec
from samforge.workflows.runtimes import runtimes_here

ROWS = ("rows", 3)
SPEC = PartSpec(
    name="toy",
    inputs=(
        TensorSpec(name="x", dtype="float32", shape=ROWS),
        TensorSpec(name="mask", dtype="bool", shape=ROWS),
    ),
    outputs=(
        TensorSpec(name="y", dtype="float32", shape=ROWS),
        TensorSpec(name="other", dtype="bool", shape=ROWS),
    ),
)
GPU_WHEEL = PROVIDER in ort.get_available_providers()
CPU_WHEEL_ONLY = pytest.mark.skipif(GPU_WHEEL, reason="onnxruntime-gpu is installed")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("toy") / "toy.onnx"
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]>
        toy (float[rows, 3] x, bool[rows, 3] mask) => (float[rows, 3] y, bool[rows, 3] other)
        <float zero = {0.0}> {
            [choose] kept = Where(mask, x, zero)
            [double] y = Add(kept, kept)
            [turn] other = Not(mask)
        }"""
    )
    onnx.save(model, path)
    return path


@pytest.fixture
def session(toy: Path) -> DeviceBoundSession:
    options = session_options({})
    options.add_session_config_entry(RECORD, "1")
    made = DeviceBoundSession(toy, SPEC, options, ["CPUExecutionProvider"], {}, place=("cpu", 0))
    made.hold()
    return made


def given(rows: int = 2) -> dict[str, torch.Tensor]:
    x = torch.arange(3.0 * rows).reshape(rows, 3) + 1
    return {"x": x, "mask": x % 2 == 0}


def test_it_runs_on_tensors_where_they_are(session: DeviceBoundSession) -> None:
    tensors = given()
    wanted = {"y": torch.where(tensors["mask"], 2 * tensors["x"], 0), "other": ~tensors["mask"]}
    found = session.run_on_device(tensors)
    assert session.device == "cpu"
    assert list(found) == ["y", "other"]
    for name, tensor in found.items():
        taken = torch.from_dlpack(tensor)
        assert taken.dtype == wanted[name].dtype
        assert torch.equal(taken, wanted[name])
        assert taken.data_ptr() == tensor.pointer
        assert (tensor.shape, tensor.dtype) == ((2, 3), str(taken.dtype).removeprefix("torch."))
        assert np.array_equal(tensor.numpy(), wanted[name].numpy())
    arrays = session.run({name: tensor.numpy() for name, tensor in tensors.items()})
    assert all(np.array_equal(arrays[name], wanted[name].numpy()) for name in wanted)


def test_what_one_session_gives_another_takes(session: DeviceBoundSession) -> None:
    first = session.run_on_device(given())
    second = session.run_on_device({"x": first["y"], "mask": first["other"]})
    assert torch.from_dlpack(second["y"]).abs().max() == 0  # nothing stands where the mask was not
    third = session.run_on_device({"x": first["y"], "mask": given()["mask"]})
    assert torch.equal(torch.from_dlpack(third["y"]), 2 * torch.from_dlpack(first["y"]))


def test_results_live_as_long_as_they_are_held(session: DeviceBoundSession) -> None:
    kept = torch.from_dlpack(session.run_on_device(given(50))["y"])
    wanted = kept.clone()
    for rows in (50, 50, 7):
        session.run_on_device(
            {name: tensor + 1 if name == "x" else tensor for name, tensor in given(rows).items()}
        )
    session.close()
    assert torch.equal(kept, wanted)


class _Elsewhere:
    """A tensor that says it lies on a second GPU."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 1

    def __dlpack__(self, stream: object = None) -> Any:
        return self.tensor.__dlpack__()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x.half(), r"toy wants x: float32 \(rows, 3\), got float16"),
        (lambda x: x[:, :2].contiguous(), r"toy wants x of shape \(2, 3\), got \(2, 2\)"),
        (lambda x: x.T.contiguous().T, "x is not packed row by row"),
        (_Elsewhere, "toy runs on cpu, and x lies on cuda:1. Move it there first"),
        (lambda _: "a picture", "x wants a tensor on the GPU"),
    ],
)
def test_tensors_that_do_not_fit(
    session: DeviceBoundSession, change: Callable[[torch.Tensor], Any], words: str
) -> None:
    tensors: dict[str, Any] = given()
    with pytest.raises(ShapeError, match=words):
        session.run_on_device({**tensors, "x": change(tensors["x"])})


def test_names_that_do_not_fit(session: DeviceBoundSession) -> None:
    with pytest.raises(ShapeError, match=r"toy wants the inputs \['mask', 'x'\], got \['x'\]"):
        session.run_on_device({"x": given()["x"]})
    session.close()
    with pytest.raises(ShapeError, match="The session of toy is closed"):
        session.run_on_device(given())


def test_a_session_tells_where_it_runs(session: DeviceBoundSession, toy: Path) -> None:
    check_placement(session.require_open(), "CPUExecutionProvider", toy, {})
    with pytest.raises(EngineError, match=rf"on its {PROVIDER}: it took CPUExecutionProvider\."):
        check_placement(session.require_open(), PROVIDER, toy, {})


def test_operators_left_to_the_processor_are_counted(
    session: DeviceBoundSession, toy: Path
) -> None:
    loaded = SimpleNamespace(
        get_providers=lambda: [PROVIDER, "CPUExecutionProvider"],
        get_provider_graph_assignment_info=(
            session.require_open().get_provider_graph_assignment_info
        ),
    )
    with pytest.raises(EngineError, match=r"to the processor: 1 x Where, 1 x Add, 1 x Not\."):
        check_placement(loaded, PROVIDER, toy, {})
    with pytest.raises(EngineError, match=r"to the processor: 1 x Not\."):
        check_placement(loaded, PROVIDER, toy, {"samforge.sizes": "choose,double"})
    check_placement(loaded, PROVIDER, toy, {"samforge.sizes": "choose,double,turn"})


@CPU_WHEEL_ONLY
def test_the_package_for_processors_is_named(toy: Path) -> None:
    assert backend_from_name("onnxruntime-cuda").version() is None
    with pytest.raises(OtherWheel) as caught:
        backend_from_name("onnxruntime-cuda").session_from_artifact(toy, SPEC)
    words = str(caught.value)
    assert f"onnxruntime {ort.__version__} is loaded here, which has no {PROVIDER}" in words
    assert "onnxruntime and onnxruntime-gpu share one module" in words
    assert (
        "Run: pip install 'samforge[onnxruntime-cuda]' && pip uninstall -y onnxruntime &&" in words
    )
    assert isinstance(caught.value, MissingExtra)
    assert caught.value.extra == "onnxruntime-cuda"


def test_both_packages_keep_the_version() -> None:
    words = str(OtherWheel("1.31.0", "1.31.1"))
    assert "Run: pip uninstall -y onnxruntime && pip install" in words
    assert "'onnxruntime-gpu==1.31.1'" in words


def test_the_other_package_passes() -> None:
    require_provider(SimpleNamespace(get_available_providers=lambda: [PROVIDER]))


def test_missing_libraries_are_named() -> None:
    assert missing_of(["libc.so.6", "libnothing.so.9"]) == ["libnothing.so.9"]
    try:
        for name in LIBRARIES["13"]:
            ctypes.CDLL(name)
        pytest.skip("CUDA 13 is installed")
    except OSError:
        pass
    asked: list[str] = []

    def preload() -> None:
        asked.append("preload")
        print("Failed to load libcudnn.so.9")  # noqa: T201  # as it does

    runtime = SimpleNamespace(cuda_version="13.0", preload_dlls=preload)
    with pytest.raises(MissingExtra, match=r"CUDA 13\.0 .*libcudnn\.so\.9.*samforge\[onnxruntime"):
        require_libraries(runtime)
    assert asked == ["preload"]


def test_threads_and_options_are_refused(toy: Path) -> None:
    backend = backend_from_name("onnxruntime-cuda")
    with pytest.raises(SettingError, match="no processor threads to count"):
        backend.session_from_artifact(toy, SPEC, threads=2)
    with pytest.raises(SettingError, match="onnxruntime-cuda has no option 'colour'"):
        backend.session_from_artifact(toy, SPEC, options={"colour": "blue"})


@CPU_WHEEL_ONLY
def test_doctor_has_a_row_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from samforge.workflows import runtimes

    monkeypatch.setattr(runtimes, "_probe", lambda name: (None, f"probed {name}"))
    rows = {row.name: row for row in runtimes_here()}
    assert rows["onnxruntime"].problem == "probed onnxruntime"
    assert rows["onnxruntime"].install == "pip install samforge"
    assert rows["onnxruntime-cuda"].problem == "not installed"
    assert rows["onnxruntime-cuda"].install == "pip install 'samforge[onnxruntime-cuda]'"
    assert "inductor" not in rows
