"""``samforge inspect``: what it reads from bundles, ONNX files and exported programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from made_up import reseal

import samforge
from samforge.apps import cli
from samforge.core.errors import DamagedBundle
from samforge.core.manifest import StepResult
from samforge.transform import ExternalFile, summary_from_file

Capture = pytest.CaptureFixture[str]


def _inspect(path: Path, capsys: Capture) -> dict[str, Any]:
    assert cli.main(["inspect", str(path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["command"], report["ok"]) == ("inspect", True)
    return dict(report)


def test_a_bundle(tiny_bundle: samforge.Bundle, capsys: Capture) -> None:
    report = _inspect(tiny_bundle.root, capsys)
    assert report["intact"] is True
    assert "LICENSE-weights.txt" in report["license"]
    assert set(report["manifest"]["parts"]) == {"vision", "text", "detector", "detector_boxes"}

    assert cli.main(["inspect", str(tiny_bundle.root)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for word in (
        *("tiny (sam3)", "224 x 224", "32 tokens", "onnxruntime", "yes, every hash is right"),
        *("export_max_abs 0", "onnx_max_abs 0.0001", "presence_logit", "cosine", "sha256:"),
        f"torch {torch.__version__}",
    ):
        assert word in " ".join(out.split())  # cells wrap


def test_what_the_fusions_did(tiny_bundle: samforge.Bundle, capsys: Capture) -> None:
    fusions = _inspect(tiny_bundle.root, capsys)["fusions"]
    fired = {(row["part"], row["name"]): row["fired"] for row in fusions}
    stored = json.loads((tiny_bundle.root / "report/vision/fusions.json").read_text())["fusions"]
    assert {("vision", row["name"]): row["fired"] for row in stored}.items() <= fired.items()
    assert fired["vision", "parallel-linears"] > 0
    assert cli.main(["inspect", str(tiny_bundle.root)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "left, and why" in out
    assert "parallel-linears" in out


@pytest.mark.parametrize("seen", [None, 11])
def test_what_is_in_eight_bits(
    fake_bundle: Callable[..., samforge.Bundle], capsys: Capture, seen: int | None
) -> None:
    bundle = fake_bundle(precision="int8")
    made = {
        "part": "vision",
        "quantized_share": 0.87,
        "kept_share": 0.1,
        "quantized_layers": 12,
        "kept": ["layers.3.mlp"],
    }
    counted = () if seen is None else ({"integer_layers": seen}, {"recorded_share": 0.75})
    steps = tuple(
        StepResult(
            name=name,
            part="vision",
            seconds=1,
            bytes=0,
            peak_gib=None,
            resumed=False,
            fidelity=rows,
        )
        for name, rows in (("quantize", (made,)), ("onnx", counted))
    )
    reseal(bundle.root, replace(bundle.manifest, steps=steps))
    layers, share = (12, 0.87) if seen is None else (seen, 0.75)
    assert _inspect(bundle.root, capsys)["quantized"] == {
        "vision": {"layers": layers, "share": share, "kept": ["layers.3.mlp"]}
    }
    assert cli.main(["inspect", str(bundle.root)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"{layers} {share:.1%}" in out
    assert "vision keeps in float to hold its gates: layers.3.mlp." in out
    broken = tuple(replace(one, fidelity=({"quantized_layers": "many"},)) for one in steps)
    reseal(bundle.root, replace(bundle.manifest, steps=broken))
    assert cli.main(["inspect", str(bundle.root)]) == DamagedBundle.exit_code


def test_what_fusions_would_do(program: Path, tmp_path: Path, capsys: Capture) -> None:
    before = program.read_bytes()
    assert cli.main(["inspect", str(program), "--target", "onnxruntime", "--json"]) == 0
    fusions = json.loads(capsys.readouterr().out)["fusions"]
    assert {row["name"]: row["fired"] for row in fusions}["parallel-linears"] == 0
    assert {row["part"] for row in fusions} == {program.stem}
    assert cli.main(["inspect", str(program), "--target", "onnxruntime"]) == 0
    assert "parallel-linears" in capsys.readouterr().out
    assert program.read_bytes() == before
    assert cli.main(["inspect", str(program), "--target", "gpu"]) == 2
    assert "onnxruntime" in capsys.readouterr().err
    assert cli.main(["inspect", str(tmp_path), "--target", "onnxruntime"]) == 2
    assert "--target shows fusions of a .pt2" in capsys.readouterr().err


def test_narrow_terminals_break_no_words(
    tiny_bundle: samforge.Bundle, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["inspect", str(tiny_bundle.root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    steps = lines[lines.index("Steps") :]
    assert sum("detector_boxes" in line for line in steps) == 3


def _flip_a_byte(bundle: Path) -> None:
    file = bundle / "parts" / "text" / "text.onnx"
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_flip_a_byte, "its hash differs"),
        (lambda bundle: (bundle / "tokenizer/tokenizer.json").unlink(), "is missing in"),
    ],
)
def test_a_damaged_bundle_is_shown_and_fails(
    damage: Callable[[Path], None], message: str, bundle_copy: Path, capsys: Capture
) -> None:
    damage(bundle_copy)
    assert cli.main(["inspect", str(bundle_copy)]) == 5
    out, err = capsys.readouterr()
    assert "tiny (sam3)" in out
    assert "│ intact                 │ NO" in out or "intact                  NO" in out
    assert "DamagedBundle: " in err
    assert message in err
    assert cli.main(["inspect", str(bundle_copy), "--json"]) == 5
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], report["intact"]) == (False, False)
    assert message in report["error"]["message"]


def test_a_path_that_leads_outside(bundle_copy: Path, capsys: Capture) -> None:
    manifest = bundle_copy / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace("tokenizer/tokenizer.json", "../tokenizer.json"))
    assert cli.main(["inspect", str(bundle_copy)]) == 5
    out, err = capsys.readouterr()
    assert out == ""
    assert "the path '../tokenizer.json' leaves the bundle" in err


def test_a_folder_that_is_no_bundle(tmp_path: Path, capsys: Capture) -> None:
    assert cli.main(["inspect", str(tmp_path)]) == 5
    assert f"ForeignBundle: {tmp_path} is not a samforge bundle" in capsys.readouterr().err


def test_an_onnx_file(tiny_bundle: samforge.Bundle, capsys: Capture) -> None:
    path = tiny_bundle.root / "parts" / "detector" / "detector.onnx"
    graph = _inspect(path, capsys)["graph"]
    spec = tiny_bundle.manifest.parts["detector"].spec
    assert graph["kind"] == "ONNX"
    assert graph["versions"]["opset ai.onnx"] == "20"
    assert [tensor["name"] for tensor in graph["inputs"]] == [one.name for one in spec.inputs]
    assert graph["outputs"][0] == {
        "name": "pred_logits",
        "dtype": "float32",
        "shape": ["batch", "prompts", 24],
    }
    assert graph["operators"]["MatMul"] > 10
    assert list(graph["operators"].values()) == sorted(graph["operators"].values(), reverse=True)
    assert graph["weights"][0]["dtype"] == "float32"
    assert 0.7 * path.stat().st_size < graph["weights"][0]["bytes"] < path.stat().st_size
    assert (graph["external"], graph["hazards"]) == ([], [])

    assert cli.main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert "No operator that TensorRT and others stumble over." in out
    assert f"Operators: {len(graph['operators'])} kinds" in out


def _small_onnx(path: Path, *, operator: str = "Add", external: str | None = None) -> Path:
    """One operator with a float16 weight of 40 x 30; smaller ones stay in the graph."""
    weight = ir.val("w", const_value=ir.tensor(np.ones((40, 30), np.float16), name="w"))
    given = ir.val("x", dtype=ir.DataType.FLOAT16, shape=["batch", 30])
    made = ir.val("y", dtype=ir.DataType.FLOAT16, shape=["batch", 30])
    node = ir.Node("", operator, [given, weight], outputs=[made])
    graph = ir.Graph([given], [made], nodes=[node], initializers=[weight], opset_imports={"": 20})
    ir.save(ir.Model(graph, ir_version=10), path, external_data=external)
    return path


def test_weights_beside_the_graph(tmp_path: Path, capsys: Capture) -> None:
    path = _small_onnx(tmp_path / "a.onnx", external="a.onnx.data")
    summary = summary_from_file(path)
    size = (tmp_path / "a.onnx.data").stat().st_size
    assert summary.external == (ExternalFile(name="a.onnx.data", bytes=size, inside=True),)
    assert [(one.dtype, one.tensors, one.bytes) for one in summary.weights] == [
        ("float16", 1, 2400)
    ]
    (tmp_path / "a.onnx.data").unlink()
    assert cli.main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert "External data" in out
    assert "missing" in out


def test_weights_outside_the_folder_are_not_looked_at(tmp_path: Path) -> None:
    path = _small_onnx(tmp_path / "a.onnx", external="xxxsecret.data")
    content = path.read_bytes().replace(b"xxxsecret.data", b"../secret.data")
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "a.onnx").write_bytes(content)
    (tmp_path / "xxxsecret.data").rename(tmp_path / "secret.data")
    summary = summary_from_file(inner / "a.onnx")
    assert summary.external == (ExternalFile(name="../secret.data", bytes=None, inside=False),)


def test_hazards_have_reasons(tmp_path: Path, capsys: Capture) -> None:
    path = _small_onnx(tmp_path / "a.onnx", operator="GridSample")
    assert cli.main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert "Hazard: 1 x GridSample: slow or wrong" in out
    assert "No operator" not in out


class _Linear(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layer(x))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small exported program with a dynamic axis."""
    batch = {0: torch.export.Dim("batch", min=1)}
    exported = torch.export.export(_Linear(), (torch.ones(2, 3),), dynamic_shapes=(batch,))
    path = tmp_path_factory.mktemp("pt2") / "a.pt2"
    torch.export.save(exported, path)
    return path


def test_an_exported_program(program: Path, capsys: Capture) -> None:
    graph = _inspect(program, capsys)["graph"]
    assert graph["kind"] == "exported program"
    (given,), (made,) = graph["inputs"], graph["outputs"]
    assert (given["name"], given["dtype"], given["shape"][1]) == ("x", "float32", 3)
    assert isinstance(given["shape"][0], str)
    assert made["shape"][1] == 2
    assert graph["operators"] == {"aten.linear.default": 1, "aten.relu.default": 1}
    assert graph["weights"] == [{"dtype": "float32", "tensors": 2, "bytes": 32}]
    assert cli.main(["inspect", str(program)]) == 0
    assert "aten.linear.default" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@pytest.mark.parametrize("content", [b"", b"hello" * 100], ids=["empty", "text"])
def test_a_broken_file(suffix: str, content: bytes, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    assert cli.main(["inspect", str(path)]) == 5
    out, err = capsys.readouterr()
    assert out == ""
    assert f"DamagedBundle: {path} cannot be read" in err
    assert "Copy it again" in err


def test_other_files_are_refused(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "a.txt").touch()
    assert cli.main(["inspect", str(tmp_path / "a.txt")]) == 2
    assert "ends in '.txt'. What can be read" in capsys.readouterr().err
    assert cli.main(["inspect", str(tmp_path / "b.onnx")]) == 2
    assert "b.onnx is no file. Give a bundle's folder" in capsys.readouterr().err
