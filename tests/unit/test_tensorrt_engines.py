"""Engines around the library: stamps, refusals, counts, progress, memory, the ladder of forms."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from samforge.backends import backend_from_name
from samforge.backends.tensorrt.capabilities import FORMS
from samforge.backends.tensorrt.cuda import CudaError, Gpu, call, gpu_here
from samforge.backends.tensorrt.device_array import DeviceArray, array_from_dlpack
from samforge.backends.tensorrt.ladder import NOT_VERIFIED, Verdict, safest_form
from samforge.backends.tensorrt.library import RTX, TENSORRT
from samforge.backends.tensorrt.loading import check_file, check_gpu, check_version, element_type
from samforge.backends.tensorrt.plan_text import computation_from_plan, computation_from_plan_file
from samforge.backends.tensorrt.reporting import Phases
from samforge.backends.tensorrt.settings import AxisRange
from samforge.backends.tensorrt.stamp import EngineStamp, read_stamp, stamp_path, write_stamp
from samforge.backends.tensorrt.worker import buffer_bytes, shape_at, sizes_of
from samforge.core.computation import Computation, lost_computation
from samforge.core.errors import (
    DamagedBundle,
    FidelityError,
    ForeignBundle,
    SettingError,
    ShapeError,
)
from samforge.core.session import PartSpec, TensorSpec
from samforge.transform.onnx import attention_forms

SPEC = PartSpec(
    name="detector",
    inputs=(
        TensorSpec(name="fpn", dtype="float32", shape=("batch", 8, 4, 4)),
        TensorSpec(name="mask", dtype="bool", shape=("prompts", 32)),
    ),
    outputs=(TensorSpec(name="boxes", dtype="float32", shape=("batch", "prompts", 9)),),
)
AXES = {"batch": AxisRange(max=2), "prompts": AxisRange(max=8)}
L4 = Gpu(index=0, name="NVIDIA L4", compute_capability="89")
CONTENT = b"an engine" * 100
STAMP = EngineStamp(
    target="tensorrt-rtx",
    version="1.7.1.116",
    compute_capabilities=("86", "89"),
    gpu=None,
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    bytes=len(CONTENT),
    precision="int8",
    form="fused",
    axes=AXES,
    computation=Computation(source="x", gemms={"int8": 3}, convolutions={}, attentions=2),
)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "vision.engine"
    path.write_bytes(CONTENT)
    write_stamp(path, STAMP)
    return path


def test_a_stamp_comes_back_as_it_was(engine: Path) -> None:
    assert stamp_path(engine).name == "vision.engine.json"
    assert read_stamp(engine) == STAMP
    check_file(RTX, engine, STAMP)
    stamp_path(engine).unlink()
    assert read_stamp(engine) is None


def test_a_damaged_stamp(engine: Path) -> None:
    stamp_path(engine).write_text('{"stamp": 1}')
    with pytest.raises(DamagedBundle, match=r"is not the stamp of an engine: .* lacks target"):
        read_stamp(engine)


def test_a_truncated_engine(engine: Path) -> None:
    engine.write_bytes(CONTENT[:-7])
    with pytest.raises(DamagedBundle) as caught:
        check_file(RTX, engine, STAMP)
    assert str(caught.value) == (
        f"TensorRT for RTX cannot load {engine}: it is truncated, 893 of 900 bytes. "
        "Copy it again from where it came, or build it again."
    )


def test_a_changed_engine(engine: Path) -> None:
    engine.write_bytes(b"b" + CONTENT[1:])
    with pytest.raises(DamagedBundle, match="its hash is not the one in its stamp"):
        check_file(RTX, engine, STAMP)


def test_an_engine_of_the_other_product(engine: Path) -> None:
    with pytest.raises(ForeignBundle, match="built for the target tensorrt-rtx, and tensorrt was"):
        check_file(TENSORRT, engine, STAMP)


def test_an_engine_of_another_version(engine: Path) -> None:
    check_version(engine, STAMP, RTX, "1.7.1.116")
    with pytest.raises(ForeignBundle) as caught:
        check_version(engine, STAMP, RTX, "1.8.0.5")
    assert str(caught.value) == (
        f"{engine} was built by TensorRT for RTX 1.7.1.116, and 1.8.0.5 is installed here. "
        "Run: pip install 'tensorrt-rtx-cu13==1.7.1.116', or build it again."
    )


def test_an_engine_for_another_gpu(engine: Path) -> None:
    assert check_gpu(engine, STAMP, RTX, L4) is L4
    turing = Gpu(index=0, name="Tesla T4", compute_capability="75")
    with pytest.raises(ForeignBundle) as caught:
        check_gpu(engine, STAMP, RTX, turing)
    assert str(caught.value) == (
        f"{engine} was built for a GPU of compute capability 86 or 89, and this is Tesla T4 "
        "(compute capability 75). Build it again with --compute-capability 75."
    )
    built_there = replace(STAMP, target="tensorrt", gpu="NVIDIA L40S", compute_capabilities=("89",))
    with pytest.raises(ForeignBundle, match=r"for NVIDIA L40S of .* 89, and this is NVIDIA L4 \("):
        check_gpu(engine, built_there, TENSORRT, L4)


def test_an_engine_where_there_is_no_gpu(engine: Path) -> None:
    with pytest.raises(ForeignBundle) as caught:
        check_gpu(engine, STAMP, RTX, None)
    assert str(caught.value) == (
        f"{engine} was built for a GPU of compute capability 86 or 89, and there is no GPU here. "
        "Run it where there is one, or build for --target onnxruntime or openvino."
    )


def test_the_backends_say_what_they_are() -> None:
    for name in ("tensorrt", "tensorrt-rtx"):
        backend = backend_from_name(name)
        assert backend.name == name
        if gpu_here() is None:
            assert backend.version() is None


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_no_engine_and_no_threads(name: str, tmp_path: Path) -> None:
    backend = backend_from_name(name)
    with pytest.raises(DamagedBundle, match=r"cannot load .*gone\.bin: there is no such file"):
        backend.session_from_artifact(tmp_path / "gone.bin", SPEC)
    with pytest.raises(SettingError, match="it has no processor threads to count"):
        backend.session_from_artifact(tmp_path / "gone.bin", SPEC, threads=2)


@pytest.mark.skipif(gpu_here() is not None, reason="there is a GPU here")
def test_without_a_gpu_calls_say_so() -> None:
    with pytest.raises(CudaError, match="There is no NVIDIA GPU or driver here"):
        call("cuCtxSynchronize")


TEXT = b"""binary
  tensor={ alignment=128 dims={ 4 } name="x" offset=0 type=half }
  tensor={ dims={ 4 } name="w" type=half }
  tensor={ dims={ 4 } name="q" type=int8 }
  sub_tensor={ base="x" name="z" strides={ 1 } type=float }
  tensor={ dims={ 4 } name="e" type=fp8e4m3 }
  fully_connected={ name="a" output={"y" } input={"x" "w" } stream=0
  fully_connected={ name="b+c" output={"y" } input={"q" "w" } stream=0
  fully_connected={ name="d" output={"y" } input={"z" "w" } stream=0
  fully_connected={ name="f" output={"y" } input={"e" "w" } stream=0
  corrltn={ name="conv" output={"y" } input={"x" "w" } stream=0
  deconvolution={ name="up" output={"y" } input={"x" "w" } stream=0
  function={ name=_gemm_mha_v2 fqn=_gemm_mha_v2_0xd9 args={ "x" }
  function={ name=__myl_Add fqn=__myl_Add_0x1 args={ "x" }
"""


def test_counts_from_the_text_of_a_plan(tmp_path: Path) -> None:
    found = computation_from_plan(memoryview(TEXT))
    assert found is not None
    assert found.gemms == {"fp16": 1, "fp32": 1, "fp8": 1, "int8": 1}
    assert (found.convolutions, found.attentions) == ({"fp16": 2}, 1)
    assert "best effort" in found.source
    path = tmp_path / "a.engine"
    for content, expected in ((TEXT, found), (b"no text at all", None), (b"", None)):
        path.write_bytes(content)
        assert computation_from_plan_file(path) == expected


def _computation(attentions: int = 0, **gemms: int) -> Computation:
    return Computation(source="test", gemms=gemms, convolutions={}, attentions=attentions)


@pytest.mark.parametrize(
    ("planned", "found", "losses"),
    [
        (_computation(7, fp16=42), _computation(7, fp16=28), 0),
        (_computation(7, int8=28, fp16=2), _computation(8, int8=14, fp16=2), 0),
        (_computation(7, fp16=42), _computation(6, fp16=44), 1),
        (_computation(0, int8=28, fp16=2), _computation(0, int8=20, fp16=10), 1),
        (_computation(0, int8=28), _computation(0, fp32=28), 2),
        (_computation(0, fp8=28), _computation(0, fp16=28), 2),
        (_computation(0, fp32=3), _computation(0, fp32=3), 0),
    ],
)
def test_losses(planned: Computation, found: Computation, losses: int) -> None:
    assert len(lost_computation(planned, found)) == losses


def test_losses_in_words() -> None:
    planned, found = _computation(32, int8=128), _computation(0, int8=64, fp32=64)
    fusion, products = lost_computation(planned, found)
    assert fusion == (
        "32 attentions should be fused, 0 are: the others run as separate products around a "
        "softmax."
    )
    assert products == "64 products run in fp32, 0 should."
    assert str(planned) == "128 int8 products, 32 fused attentions"


def test_progress_never_goes_back_and_ends_at_one() -> None:
    phases, seen = Phases(), []
    phases.start("build", None, 2)
    phases.start("clone", "build", 4)
    for step in range(4):
        phases.step("clone", step)
        seen.append(phases.done())
    phases.finish("clone")
    phases.step("build", 0)
    phases.start("compile", "build", 2)
    phases.start("inner", "compile", 2)
    phases.step("inner", 0)
    seen.append(phases.done())
    for name in ("inner", "compile", "build"):
        phases.finish(name)
    seen.append(phases.done())
    assert seen == [0.125, 0.25, 0.375, 0.5, 0.625, 1.0]


def test_shapes_and_memory_of_a_call() -> None:
    sizes = sizes_of(SPEC, {"fpn": (2, 8, 4, 4), "mask": (3, 32)})
    assert sizes == {"batch": 2, "prompts": 3}
    assert shape_at(SPEC.outputs[0], sizes) == (2, 3, 9)
    assert buffer_bytes(SPEC, AXES) == {"fpn": 2 * 128 * 4, "mask": 8 * 32, "boxes": 2 * 8 * 9 * 4}


@pytest.mark.parametrize(
    ("given", "dtype"),
    [
        (np.arange(6, dtype=np.float32).reshape(2, 3), "float32"),
        (np.arange(6).reshape(2, 3), "int64"),
        (torch.ones(2, 3, dtype=torch.float16), "float16"),
        (torch.ones(2, 3, dtype=torch.bfloat16), "bfloat16"),
        (torch.ones(2, 3, dtype=torch.bool), "bool"),
        (torch.ones(4, 3)[2:], "float32"),
    ],
)
def test_tensors_are_taken_where_they_lie(given: object, dtype: str) -> None:
    array = array_from_dlpack("x", given, stream=None)
    assert (array.shape, array.dtype, array.device) == ((2, 3), dtype, -1)
    if isinstance(given, torch.Tensor):
        assert array.pointer == given.data_ptr()
    else:
        values = (ctypes.c_char * array.nbytes).from_address(array.pointer)
        assert bytes(values) == given.tobytes()  # type: ignore[attr-defined]


def test_tensors_that_cannot_be_taken() -> None:
    with pytest.raises(ShapeError, match=r"x is not packed row by row \(shape \(3, 2\), strides"):
        array_from_dlpack("x", torch.ones(2, 3).T, stream=None)
    with pytest.raises(ShapeError, match=r"x wants a tensor on the GPU .* got list"):
        array_from_dlpack("x", [1.0], stream=None)


def test_device_arrays_describe_themselves() -> None:
    array = DeviceArray(pointer=4096, shape=(2, 3), dtype="float16", device=0, owner=None)
    assert array.nbytes == 12
    assert array.__cuda_array_interface__ == {
        "shape": (2, 3),
        "typestr": "<f2",
        "data": (4096, False),
        "version": 3,
        "strides": None,
    }
    assert array_from_dlpack("x", array, stream=5) is array


def test_element_types() -> None:
    assert [element_type(f"DataType.{n}") for n in ("HALF", "INT64", "BOOL", "FP4")] == [
        "float16",
        "int64",
        "bool",
        "FP4",
    ]


def _verdicts(*held: bool) -> Iterator[Verdict]:
    for index, holds in enumerate(held):
        yield Verdict(holds=holds, figures=f"cosine 0.{index}", latency_ms=10.0 + 5 * index)


def test_the_ladder_has_the_forms_of_the_graphs() -> None:
    assert attention_forms.FORMS == FORMS


def test_the_first_form_that_holds_is_taken_and_its_cost_is_told() -> None:
    verdicts = _verdicts(False, False, True)
    built: list[str] = []
    ladder = safest_form(lambda form: built.append(form) or form, lambda _: next(verdicts))
    assert built == ["fused", "unfused-windows", "unfused"]
    assert (ladder.chosen.form, ladder.verified) == ("unfused", True)
    assert ladder.notes == (
        "Attention fused did not hold the gate: cosine 0.0.",
        "Attention unfused-windows did not hold the gate: cosine 0.1.",
        "Attention unfused holds it, at 20.0 ms instead of 10.0 ms (2.00 times).",
    )


def test_the_ladder_begins_where_it_is_told() -> None:
    verdicts = _verdicts(False, True)
    ladder = safest_form(
        lambda form: form,
        lambda _: next(verdicts),
        forms=("fused", "unfused", "float"),
        first="unfused-windows",
    )
    assert [attempt.form for attempt in ladder.attempts] == ["unfused", "float"]
    held = safest_form(lambda form: form, lambda _: next(_verdicts(True)), forms=("fused",))
    assert held.notes == ()


def test_without_a_gpu_the_first_form_is_kept_unverified() -> None:
    ladder = safest_form(lambda form: form, lambda _: None, first="unfused")
    assert (ladder.chosen.form, ladder.verified) == ("unfused", False)
    assert NOT_VERIFIED in ladder.notes[0]


def test_no_form_holds() -> None:
    verdicts = _verdicts(False, False, False, False)
    with pytest.raises(FidelityError) as caught:
        safest_form(lambda form: form, lambda _: next(verdicts))
    assert "fused: cosine 0.0; unfused-windows: cosine 0.1" in str(caught.value)
    assert "Nothing was published" in str(caught.value)
    with pytest.raises(SettingError, match="There is no form 'best' of attention"):
        safest_form(lambda form: form, lambda _: None, first="best")
