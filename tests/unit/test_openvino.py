"""OpenVINO's options: precision, threads, hint, cache; and what it says of itself."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samforge.backends import backend_from_name
from samforge.backends.openvino import OPTIONS, OpenVinoSession
from samforge.core.errors import MissingExtra, SettingError
from samforge.core.session import checked_options
from samforge.core.structure import json_from_value

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
