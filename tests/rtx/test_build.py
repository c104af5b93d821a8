"""TensorRT for RTX's own builder, without a GPU: engines, counts, refusals.

pytest -m rtx
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from samforge.backends import backend_from_name
from samforge.backends.tensorrt.build import EngineReport, engine_from_onnx
from samforge.backends.tensorrt.cuda import gpu_here
from samforge.backends.tensorrt.library import RTX, library
from samforge.backends.tensorrt.loading import deserialized
from samforge.backends.tensorrt.settings import AxisRange, EngineSettings
from samforge.backends.tensorrt.stamp import read_stamp
from samforge.core.errors import (
    DamagedBundle,
    EngineError,
    ForeignBundle,
    OutputError,
    SettingError,
)
from samforge.core.session import PartSpec, TensorSpec
from samforge.transform.onnx.attention_forms import reform_attention
from samforge.transform.onnx.attention_widths import widen_values
from samforge.transform.onnx.half import cast_half
from samforge.transform.onnx.inspect import summary_from_onnx
from samforge.transform.onnx.planned import computation_from_onnx
from samforge.transform.onnx.precision_plan import TENSORRT

pytestmark = pytest.mark.rtx
pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")

BLOCK = """<ir_version: 10, opset_import: ["" : 20]>
g (float16[batch,64,128] x, float16[128,128] wq, float16[128,128] wk, float16[128,128] wv)
=> (float16[batch,64,128] y) <int64[4] split = {0, 64, 2, 64}, int64[3] join = {0, 64, 128}> {
    q0 = MatMul(x, wq)
    q1 = Reshape(q0, split)
    q = Transpose <perm = [0, 2, 1, 3]> (q1)
    k0 = MatMul(x, wk)
    k1 = Reshape(k0, split)
    k = Transpose <perm = [0, 2, 3, 1]> (k1)
    v0 = MatMul(x, wv)
    v1 = Reshape(v0, split)
    v = Transpose <perm = [0, 2, 1, 3]> (v1)
    scores = MatMul(q, k)
    p = Softmax <axis = -1> (scores)
    c0 = MatMul(p, v)
    c1 = Transpose <perm = [0, 2, 1, 3]> (c0)
    y = Reshape(c1, join)
}"""
SPEC = PartSpec(
    name="block",
    inputs=(
        TensorSpec(name="x", dtype="float16", shape=("batch", 64, 128)),
        *(TensorSpec(name=name, dtype="float16", shape=(128, 128)) for name in ("wq", "wk", "wv")),
    ),
    outputs=(TensorSpec(name="y", dtype="float16", shape=("batch", 64, 128)),),
)
ADA = EngineSettings(compute_capabilities=("89",))


def _block(path: Path, form: str = "fused", change: tuple[str, str] = ("", "")) -> Path:
    text = BLOCK.replace(*change) if change[0] else BLOCK
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)))
    ir.save(reform_attention(model, form), path)
    return path


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., EngineReport]:
    """Builds the block of one attention."""

    def make(settings: EngineSettings = ADA, onnx_path: Path | None = None, **options: Any) -> Any:
        path = onnx_path or _block(tmp_path / "block.onnx")
        engine = tmp_path / "out" / "block.engine"
        return engine_from_onnx(RTX, path, engine, SPEC, settings, **options)

    return make


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> EngineReport:
    folder = tmp_path_factory.mktemp("built")
    return engine_from_onnx(RTX, _block(folder / "b.onnx"), folder / "b.engine", SPEC, ADA)


NARROW = """<ir_version: 10, opset_import: ["" : 20]>
g (float16[batch,1,64,128] q, float16[batch,1,96,128] k, float16[batch,1,96,32] v)
=> (float16[batch,1,64,32] y) {
    kt = Transpose <perm = [0, 1, 3, 2]> (k)
    scores = MatMul(q, kt)
    p = Softmax <axis = -1> (scores)
    y = MatMul(p, v)
}"""
"""As the tracker attends to memories: values are narrower than queries and keys."""


@pytest.mark.parametrize("wide", [True, False])
def test_narrow_values_are_fused_once_they_are_widened(wide: bool, tmp_path: Path) -> None:
    model = ir.from_proto(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(NARROW)))
    if wide:
        assert widen_values(model) == 1
    path = tmp_path / "narrow.onnx"
    ir.save(model, path)
    summary = summary_from_onnx(path)
    spec = PartSpec(name="narrow", inputs=summary.inputs, outputs=summary.outputs)
    planned = computation_from_onnx(model)
    assert planned.attentions == 1
    if wide:
        report = engine_from_onnx(RTX, path, tmp_path / "e.engine", spec, ADA, planned=planned)
        assert report.computation is not None
        assert report.computation.attentions == 1
        return
    with pytest.raises(EngineError, match="1 attentions should be fused, 0 are"):
        engine_from_onnx(RTX, path, tmp_path / "e.engine", spec, ADA, planned=planned)


def test_an_engine_and_all_that_is_known_of_it(built: EngineReport) -> None:
    stamp = read_stamp(built.engine)
    assert stamp is not None
    assert built.bytes == built.engine.stat().st_size == stamp.bytes > 10_000
    assert (stamp.target, stamp.version) == ("tensorrt-rtx", library(RTX).version)
    assert (stamp.compute_capabilities, stamp.gpu, stamp.form) == (("89",), None, "fused")
    assert stamp.axes["batch"] == AxisRange(max=4)
    assert stamp.computation == built.computation
    assert built.seconds > 0
    assert built.layers > 10
    assert "--maxShapes=x:4x64x128" in built.command
    assert [path.name for path in built.engine.parent.glob(".*")] == []


@pytest.mark.parametrize(("form", "attentions"), [("fused", 1), ("unfused", 0), ("float", 0)])
def test_what_the_engine_computes_is_what_the_graph_plans(
    form: str, attentions: int, build: Callable[..., EngineReport], tmp_path: Path
) -> None:
    path = _block(tmp_path / "b.onnx", form)
    planned = computation_from_onnx(ir.load(path))
    found = build(onnx_path=path, form=form, planned=planned).computation
    assert found is not None
    assert planned.attentions == found.attentions == attentions
    assert sum(found.gemms.values()) <= sum(planned.gemms.values())
    assert ("fp32" in found.gemms) == (form == "float")


def test_losing_the_fusion_is_an_error_and_writes_nothing(
    build: Callable[..., EngineReport], tmp_path: Path
) -> None:
    planned = computation_from_onnx(ir.load(_block(tmp_path / "fused.onnx")))
    with pytest.raises(EngineError) as caught:
        build(onnx_path=_block(tmp_path / "b.onnx", "unfused"), planned=planned)
    assert "1 attentions should be fused, 0 are" in str(caught.value)
    assert "best effort" in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_fusing_again_what_was_taken_apart_is_an_error(
    build: Callable[..., EngineReport], tmp_path: Path
) -> None:
    planned = computation_from_onnx(ir.load(_block(tmp_path / "apart.onnx", "unfused")))
    with pytest.raises(EngineError, match="0 attentions should be fused, 1 are: those that were"):
        build(onnx_path=_block(tmp_path / "b.onnx"), form="unfused", planned=planned)


def test_falling_back_to_float_is_an_error(
    build: Callable[..., EngineReport], tmp_path: Path
) -> None:
    planned = computation_from_onnx(ir.load(_block(tmp_path / "half.onnx", "unfused")))
    with pytest.raises(EngineError, match="products run in fp32, 0 should"):
        build(onnx_path=_block(tmp_path / "b.onnx", "float"), planned=planned)


def test_several_generations_in_one_engine(build: Callable[..., EngineReport]) -> None:
    report = build(replace(ADA, compute_capabilities=("86", "89", "120")))
    stamp = read_stamp(report.engine)
    assert stamp is not None
    assert stamp.compute_capabilities == ("86", "89", "120")
    assert report.computation is not None
    assert report.computation.attentions == 1


def test_progress_reaches_the_end_and_can_stop_the_build(
    build: Callable[..., EngineReport], tmp_path: Path
) -> None:
    seen: list[float] = []
    build(progress=lambda _, share: seen.append(share))
    assert seen == sorted(seen)
    assert seen[-1] == 1.0

    def stop(_: str, share: float) -> None:
        if share > 0.1:
            raise KeyboardInterrupt

    (tmp_path / "out" / "block.engine").unlink()
    with pytest.raises(KeyboardInterrupt):
        build(progress=stop)
    assert not (tmp_path / "out" / "block.engine").exists()


def test_a_timing_cache_is_ignored_and_that_is_said(
    build: Callable[..., EngineReport], tmp_path: Path
) -> None:
    report = build(replace(ADA, timing_cache=tmp_path / "timing.cache"))
    assert report.timing_cache == "ignored: TensorRT for RTX times nothing when it builds"
    assert not (tmp_path / "timing.cache").exists()


def test_too_little_workspace(build: Callable[..., EngineReport]) -> None:
    with pytest.raises(EngineError, match=r"workspace.*The workspace limit is 107 bytes: raise it"):
        build(replace(ADA, workspace_gib=1e-7))


@pytest.mark.parametrize("level", [0, 5])
def test_optimization_levels(level: int, build: Callable[..., EngineReport]) -> None:
    assert build(replace(ADA, optimization_level=level)).bytes > 10_000


def test_fp8_for_sm86(build: Callable[..., EngineReport]) -> None:
    with pytest.raises(SettingError, match=r"Compute capability 86 .* has no fp8"):
        build(replace(ADA, precision="fp8", compute_capabilities=("86",)))


def test_external_data_that_is_missing(build: Callable[..., EngineReport], tmp_path: Path) -> None:
    text = BLOCK.replace(", float16[128,128] wv)", ")")
    model = onnx.parser.parse_model(text)
    weight = onnx.numpy_helper.from_array(np.ones((128, 128), "float16"), "wv")
    model.graph.initializer.append(weight)
    path = tmp_path / "far.onnx"
    onnx.save(model, path, save_as_external_data=True, location="far.data", size_threshold=10)
    (tmp_path / "far.data").unlink()
    with pytest.raises(EngineError) as caught:
        build(onnx_path=path)
    assert str(caught.value) == (
        f"{path} keeps weights in far.data, which is not beside it. Copy both files together."
    )


def test_every_error_of_the_parser_is_shown(
    build: Callable[..., EngineReport], tmp_path: Path
) -> None:
    path = _block(tmp_path / "c.onnx", change=("Softmax <axis = -1> (scores)", "Unknown(scores)"))
    with pytest.raises(EngineError, match=r"cannot parse .*c\.onnx\. \d problems: node \d+ .*Unkn"):
        build(onnx_path=path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "There is no graph"), (b"hello" * 50, "is no ONNX graph: it has no outputs")],
)
def test_no_graph(
    content: bytes | None, message: str, build: Callable[..., EngineReport], tmp_path: Path
) -> None:
    path = tmp_path / "a.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EngineError, match=message):
        build(onnx_path=path)


def test_a_graph_of_another_part(tmp_path: Path) -> None:
    other = replace(SPEC, name="text", inputs=SPEC.inputs[:2])
    with pytest.raises(EngineError, match="has the inputs x, wq, wk, wv, and text has x, wq"):
        engine_from_onnx(RTX, _block(tmp_path / "b.onnx"), tmp_path / "b.engine", other, ADA)


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        engine_from_onnx(
            RTX, _block(tmp_path / "b.onnx"), tmp_path / "file" / "b.engine", SPEC, ADA
        )


@pytest.mark.skipif(gpu_here() is not None, reason="there is a GPU here")
def test_without_a_gpu_an_engine_is_refused_with_both_sides_named(built: EngineReport) -> None:
    with pytest.raises(ForeignBundle, match="compute capability 89, and there is no GPU here"):
        backend_from_name("tensorrt-rtx").session_from_artifact(built.engine, SPEC)
    with pytest.raises(DamagedBundle, match=r"TensorRT for RTX 1\..* cannot load .*CUDA"):
        deserialized(library(RTX), built.engine)


def test_an_engine_of_another_version_is_refused(built: EngineReport, tmp_path: Path) -> None:
    engine = tmp_path / "b.engine"
    engine.write_bytes(built.engine.read_bytes())
    stamp = json.loads(built.stamp.read_text())
    (tmp_path / "b.engine.json").write_text(json.dumps(stamp | {"version": "1.6.0.1"}))
    with pytest.raises(ForeignBundle, match=r"built by TensorRT for RTX 1\.6\.0\.1, and 1\.7"):
        backend_from_name("tensorrt-rtx").session_from_artifact(engine, SPEC)


@pytest.mark.parametrize(
    "name",
    [
        *("vision", "text"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("detector", "detector_boxes")),
    ],
)
def test_our_parts_build_as_planned_in_half(
    name: str, onnx_file: Callable[[str], Path], tmp_path: Path
) -> None:
    model = cast_half(ir.load(onnx_file(name)), TENSORRT)
    planned = computation_from_onnx(model)
    path = tmp_path / f"{name}.onnx"
    ir.save(model, path)
    summary = summary_from_onnx(path)
    spec = PartSpec(name=name, inputs=summary.inputs, outputs=summary.outputs)
    report = engine_from_onnx(RTX, path, tmp_path / "a.engine", spec, ADA, planned=planned)
    assert (planned.attentions > 0) == (name in ("vision", "text"))  # the others' heads are small
    assert report.computation is not None
    assert report.computation.attentions == planned.attentions


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("vision", "unfused-windows"),
        ("vision", "unfused"),
        ("vision", "float"),
        ("text", "unfused"),
        ("text", "float"),
    ],
)
def test_our_parts_build_as_planned_in_safer_forms(
    name: str, form: str, onnx_file: Callable[[str], Path], tmp_path: Path
) -> None:
    model = cast_half(ir.load(onnx_file(name)), TENSORRT)
    fused = computation_from_onnx(model)
    planned = computation_from_onnx(reform_attention(model, form))
    path = tmp_path / f"{name}.onnx"
    ir.save(model, path)
    summary = summary_from_onnx(path)
    spec = PartSpec(name=name, inputs=summary.inputs, outputs=summary.outputs)
    report = engine_from_onnx(
        RTX, path, tmp_path / "a.engine", spec, ADA, form=form, planned=planned
    )
    assert report.computation is not None
    assert report.computation.attentions == planned.attentions < fused.attentions
    assert (planned.attentions > 0) == (form == "unfused-windows")
    assert ("fp32" in report.computation.gemms) == (form == "float")
