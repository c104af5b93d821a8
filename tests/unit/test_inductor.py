"""The inductor backend where no package has to be compiled: records, devices, messages."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from samforge.backends import backend_from_name
from samforge.backends.inductor.backend import BACKEND, link_options, package_from_exported
from samforge.backends.inductor.memory import out_of_memory_message
from samforge.backends.inductor.record import (
    PackageRecord,
    PassedTensor,
    check_device,
    record_from_package,
)
from samforge.core.errors import (
    DamagedBundle,
    ExportError,
    ForeignBundle,
    SettingError,
)
from samforge.core.facts import FACTS_KEY
from samforge.core.session import PartSpec, TensorSpec

X = TensorSpec(name="x", dtype="float32", shape=("batch", 3))
RECORD = PackageRecord(
    part="vision",
    device="cuda",
    processor="NVIDIA H200",
    capability="9.0",
    precision="fp8",
    torch="2.11.0",
    inputs=(PassedTensor(spec=X, dtype="bfloat16", channels_last=False),),
    outputs=(PassedTensor(spec=X, dtype="float32", channels_last=True),),
)


def archive(path: Path, content: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, text in content.items():
            file.writestr(name, text)
    return path


def test_a_record_comes_back_as_it_went() -> None:
    assert PackageRecord.from_json(RECORD.to_json()) == RECORD


def test_a_record_is_read_without_loading_code(tmp_path: Path) -> None:
    table = json.dumps({"samforge": RECORD.to_json(), "AOTI_DEVICE_KEY": "cuda"})
    path = archive(tmp_path / "a.aoti.pt2", {"a/data/x.wrapper_metadata.json": table})
    assert record_from_package(path) == RECORD


def test_a_package_for_a_gpu_holds_metadata_of_its_kernels_too(tmp_path: Path) -> None:
    """The first bundles on a GPU were refused: their stamp stood in one of several such files."""
    own = json.dumps({"samforge": RECORD.to_json(), FACTS_KEY: "facts"})
    kernel = json.dumps({"kernel": "triton_red", "num_warps": 8})
    for names in ("ab", "ba"):
        files = dict(zip((f"m/{name}_metadata.json" for name in names), (kernel, own), strict=True))
        path = archive(tmp_path / f"{names}.aoti.pt2", {**files, "m/c_metadata.json": "no JSON"})
        assert BACKEND.facts_from_artifact(path) == "facts"
        assert record_from_package(path) == RECORD
    other = json.dumps({FACTS_KEY: "others"})
    two = archive(tmp_path / "two.aoti.pt2", {"a_metadata.json": own, "b_metadata.json": other})
    assert BACKEND.facts_from_artifact(two) is None


@pytest.mark.parametrize(
    "content",
    [{}, {"a/x_metadata.json": "{}"}, {"a/x_metadata.json": "no"}, {"x_metadata.json": "[1]"}],
)
def test_an_archive_without_a_record(tmp_path: Path, content: dict[str, str]) -> None:
    path = archive(tmp_path / "a.aoti.pt2", content)
    with pytest.raises(DamagedBundle, match=r"AOTInductor cannot load .*a\.aoti\.pt2: "):
        record_from_package(path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(tmp_path: Path) -> None:
    path = tmp_path / "vision.aoti.pt2"
    with pytest.raises(ForeignBundle) as caught:
        check_device(RECORD, path)
    assert str(caught.value) == (
        f"{path} was compiled for NVIDIA H200 (compute capability 9.0), and torch "
        f"{torch.__version__} sees no NVIDIA GPU here. Run it there, or build the bundle for "
        "--target onnxruntime."
    )


@pytest.mark.parametrize(
    ("wanted", "here", "runs"),
    [
        ("AVX512", "AVX512", True),
        ("AVX2", "AVX512", True),
        ("AVX512", "AVX2", False),
        ("AVX2", "DEFAULT", False),
        ("SVE256", "SVE256", True),
        ("SVE256", "AVX512", False),
        ("", "DEFAULT", True),  # a package that names none
    ],
)
def test_another_processor(
    wanted: str, here: str, runs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: here)
    record = replace(RECORD, device="cpu", capability=wanted)
    if runs:
        check_device(record, tmp_path / "v")
        return
    with pytest.raises(ForeignBundle, match=f"processors with {wanted}, and this one has {here}"):
        check_device(record, tmp_path / "v")


def test_another_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA L4")
    with pytest.raises(ForeignBundle) as caught:
        check_device(RECORD, tmp_path / "v")
    assert str(caught.value).endswith(
        "compiled for NVIDIA H200 (compute capability 9.0), and here is NVIDIA L4 "
        "(compute capability 8.9). Build the bundle again on this GPU."
    )


@pytest.mark.parametrize(
    ("free", "used", "advice"),
    [
        (30 << 30, 60 << 30, "A batch of 12 would fit."),
        (60 << 30, 60 << 30, "A batch of 24 would fit."),
        (1 << 30, 60 << 30, "Free memory of other programs."),
    ],
)
def test_out_of_memory_says_what_would_fit(free: int, used: int, advice: str) -> None:
    message = out_of_memory_message("vision", "NVIDIA L4", 32, free, used)
    assert message == (
        f"vision ran out of memory on NVIDIA L4 with a batch of 32: {free / 2**30:.1f} GiB were "
        f"free. {advice}"
    )


def test_a_program_without_examples_is_refused(tmp_path: Path) -> None:
    program = torch.export.export(torch.nn.ReLU(), (torch.zeros(2, 3),))
    program.example_inputs = None
    spec = PartSpec(name="text", inputs=(X,), outputs=(X,))
    with pytest.raises(ExportError, match="text has no example inputs, which tell its device"):
        package_from_exported(program, spec, tmp_path / "t.aoti.pt2", precision="fp32")


def test_threads_are_torchs_own(tmp_path: Path) -> None:
    backend = backend_from_name("inductor")
    spec = PartSpec(name="text", inputs=(X,), outputs=(X,))
    with pytest.raises(SettingError, match=r"torch\.set_num_threads"):
        backend.session_from_artifact(tmp_path / "t", spec, threads=2)
    with pytest.raises(SettingError, match="inductor has no option 'graphs'"):
        backend.session_from_artifact(tmp_path / "t", spec, options={"graphs": "on"})


@pytest.mark.parametrize(
    ("answer", "named"), [("libstdc++.so", True), ("/lib/libstdc++.so", False)]
)
def test_the_runtime_library_is_named_where_the_compiler_of_torch_misses_it(
    answer: str, named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text(f"#!/bin/sh\necho {answer}\n")
    compiler.chmod(0o755)
    from torch._inductor import cpp_builder

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", lambda: str(compiler))
    libraries = link_options().get("aot_inductor.custom_op_libs")
    assert libraries == ([":libstdc++.so.6"] if named else None)
