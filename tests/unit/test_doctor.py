"""``samforge doctor``: it tells what this machine really has, and how to get the rest."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from types import SimpleNamespace

import onnxruntime
import pytest

from samforge.apps import cli
from samforge.backends import backend_from_name
from samforge.backends.tensorrt.cuda import gpu_here
from samforge.core.targets import TARGETS
from samforge.workflows.machine import Gpu, features_from_cpuinfo, gpus_from_csv


def test_json_tells_what_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["schema"], report["command"], report["ok"]) == (1, "doctor", True)
    runtimes = {runtime["name"]: runtime for runtime in report["runtimes"]}
    modules = dict.fromkeys(target.module for target in TARGETS.values())
    assert [name for name in runtimes if name != "onnxruntime-cuda"] == list(modules)
    assert "onnxruntime-cuda" in runtimes  # it shares the module of onnxruntime
    assert runtimes["onnxruntime"]["version"] == onnxruntime.__version__
    assert runtimes["onnxruntime"]["processors"] == onnxruntime.get_available_providers()
    for name, runtime in runtimes.items():
        if name in modules and importlib.util.find_spec(name) is None:
            extra = {"torch": "build"}.get(name, name.replace("_", "-"))
            assert runtime["install"] == f"pip install 'samforge[{extra}]'"
            assert runtime["problem"] == "not installed"
    versions = {package["name"]: package["version"] for package in report["packages"]}
    assert versions["supervision"] == importlib.metadata.version("supervision")
    assert report["machine"]["cores"] >= 1
    assert report["machine"]["disk_free_gib"] > 0


def test_tables_name_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    for word in ("This machine", "Runtimes", "Packages", "onnxruntime", onnxruntime.__version__):
        assert word in out
    assert "Bundles can be built for onnxruntime, openvino, tensorrt" in " ".join(out.split())


def test_features_are_picked_in_order() -> None:
    assert features_from_cpuinfo({"flags": "sse4_2 amx_int8 avx2 avx512_vnni"}) == (
        "avx2",
        "avx512_vnni",
        "amx_int8",
    )
    assert features_from_cpuinfo({"Features": "asimd i8mm"}) == ("asimd", "i8mm")
    assert features_from_cpuinfo({}) == ()


def test_nvidia_smi_is_read() -> None:
    assert gpus_from_csv("NVIDIA H200, 143771, 580.95.05, 9.0\n") == (
        Gpu(name="NVIDIA H200", memory_gib=140.4, driver="580.95.05", compute_capability="9.0"),
    )
    assert gpus_from_csv("") == ()


def test_the_probe_asks_the_runtime() -> None:
    found = backend_from_name("onnxruntime").processors(onnxruntime)
    assert found == tuple(onnxruntime.get_available_providers())


def test_tensorrt_without_a_gpu_builds_and_runs_nothing() -> None:
    made: list[object] = []
    trt = SimpleNamespace(Logger=_Logger, Builder=made.append)
    (words,) = backend_from_name("tensorrt-rtx").processors(trt)
    gpu = gpu_here()
    here = gpu and f"GPU of compute capability {gpu.compute_capability}"
    assert words == (here or "builds engines; no GPU here to run them")
    assert [logger.severity for logger in made if isinstance(logger, _Logger)] == ["error"]


class _Logger:
    ERROR = "error"

    def __init__(self, severity: str) -> None:
        self.severity = severity
