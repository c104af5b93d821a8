"""The engine step around a library that is not there: plans, the GPU at hand, the inspector."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from samforge.backends.tensorrt import backend as backend_module
from samforge.backends.tensorrt.build import EngineReport
from samforge.backends.tensorrt.cuda import Gpu, gpu_here
from samforge.backends.tensorrt.library import RTX, TENSORRT, Flavour
from samforge.backends.tensorrt.proper import BACKEND
from samforge.backends.tensorrt.rtx import BACKEND as RTX_BACKEND
from samforge.backends.tensorrt.settings import EngineSettings
from samforge.core.computation import Computation, lost_computation
from samforge.core.errors import EngineError
from samforge.core.images import ImageSpec
from samforge.core.recipe import Recipe
from samforge.core.session import Array, InspectableSession, PartSpec, Tensors, TensorSpec
from samforge.models.family import Model
from samforge.report import EngineRow
from samforge.steps import engine as step
from samforge.steps.context import BuildContext
from samforge.steps.engine import UNTOLD, engine_part
from samforge.steps.report import engine_rows
from samforge.transform.onnx.planned import computation_from_onnx

ATTENTIONS = """<ir_version: 10, opset_import: ["" : 20]>
g (float16[1,4,16] a, float16[1,8,16] b) => (float16[1,4,16] y) {
    kt = Transpose <perm = [0, 2, 1]> (b)
    scores = MatMul(a, kt)
    p = Softmax <axis = -1> (scores)
    near = MatMul(p, b)
    at = Transpose <perm = [0, 2, 1]> (a)
    own = MatMul(near, at)
    q = Softmax <axis = -1> (own)
    y = MatMul(q, a)
}"""
"""Two attentions, over 8 keys and over 4: the second is the window."""
SPEC = PartSpec(
    name="vision",
    inputs=(
        TensorSpec(name="a", dtype="float16", shape=(1, 4, 16)),
        TensorSpec(name="b", dtype="float16", shape=(1, 8, 16)),
    ),
    outputs=(TensorSpec(name="y", dtype="float16", shape=(1, 4, 16)),),
)
PLANS: dict[str, tuple[int, dict[str, int]]] = {
    "fused": (2, {}),
    "unfused-windows": (1, {"fp16": 2}),
    "unfused": (0, {"fp16": 4}),
    "float": (0, {"fp32": 4}),
}
"""Fused attentions and products of each form."""
BLACKWELL = Gpu(index=0, name="NVIDIA GeForce RTX 5090", compute_capability="120")
ADA = Gpu(index=0, name="NVIDIA L4", compute_capability="89")


@dataclass
class PlainSession:
    """Gives the reference, or its negative where the engine is wrong."""

    wanted: Mapping[str, Array]
    right: bool
    closed: list[bool]

    spec = SPEC
    runtime = "tensorrt"
    processor = "a GPU that is not there"

    def run(self, tensors: Tensors) -> dict[str, Array]:
        assert set(tensors) == {"a", "b"}
        return {name: array if self.right else -array for name, array in self.wanted.items()}

    def close(self) -> None:
        self.closed.append(True)


@dataclass
class TellingSession(PlainSession):
    """Also tells what it computes."""

    told: Computation | None

    def computation(self) -> Computation | None:
        return self.told


@dataclass
class Library:
    """A backend that builds files of no content and runs what the test says."""

    wanted: Mapping[str, Array]
    gpu: bool = True
    wrong: tuple[str, ...] = ()
    """Forms whose engines compute something else."""
    told: Mapping[str, Computation | None] = field(default_factory=dict)
    """What the inspector says, by form; the plan unless given."""
    silent: bool = False
    """Whether sessions offer no inspector."""
    built: dict[str, Computation] = field(default_factory=dict)
    """The plan that came with each form."""
    graphs: dict[str, Path] = field(default_factory=dict)
    """The graph of each form."""
    facts: list[str | None] = field(default_factory=list)
    """What each engine was to say of itself."""
    asked: list[tuple[str, ...]] = field(default_factory=list)
    closed: list[bool] = field(default_factory=list)
    first: str = "fused"

    flavour = TENSORRT

    def version(self) -> str | None:
        return "11.0.0" if self.gpu else None

    def first_form(self, named: tuple[str, ...] = ()) -> str:
        self.asked.append(named)
        return self.first

    def engine_from_onnx(
        self,
        onnx: Path,
        engine: Path,
        spec: PartSpec,
        settings: EngineSettings,
        *,
        form: str,
        planned: Computation,
    ) -> EngineReport:
        self.built[form], self.graphs[form] = planned, onnx
        self.facts.append(settings.facts)
        engine.write_bytes(form.encode())
        stamp = engine.with_name(f"{engine.name}.json")
        stamp.write_text("{}")
        return EngineReport(
            engine=engine,
            stamp=stamp,
            version="11.0.0",
            form=form,
            seconds=1.0,
            bytes=4,
            layers=8,
            command=f"trtexec --onnx={onnx}",
            timing_cache="none",
            computation=None,
            warnings=(),
        )

    def session_from_artifact(self, path: Path, spec: PartSpec) -> PlainSession:
        form = path.read_text()
        right = form not in self.wrong
        if self.silent:
            return PlainSession(self.wanted, right, self.closed)
        told = self.told.get(form, self.built[form])
        return TellingSession(self.wanted, right, self.closed, told)


@pytest.fixture
def context(tmp_path: Path) -> BuildContext:
    """A folder with the graph and one sample of its inputs and outputs."""
    model = SimpleNamespace(image=ImageSpec(size=1008), text=None, spec=lambda _: SPEC)
    mine = BuildContext(
        recipe=Recipe(target="tensorrt", precision="fp16"),
        model=cast(Model, model),
        root=tmp_path,
        parts=("vision",),
    )
    graph = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(ATTENTIONS))
    ir.save(ir.from_proto(graph), mine.path(mine.onnx("vision")))
    rng = np.random.default_rng(3)
    tensors = (*SPEC.inputs, *SPEC.outputs)
    sample = {one.name: rng.normal(size=one.shape).astype("float16") for one in tensors}
    (path,) = mine.samples("vision")
    np.savez(mine.path(path), **cast("Any", sample))
    return mine


@pytest.fixture
def library(context: BuildContext, monkeypatch: pytest.MonkeyPatch) -> Library:
    with np.load(context.path(context.samples("vision")[0])) as sample:
        made = Library(wanted={"y": sample["y"]})
    monkeypatch.setattr(step, "backend_from_name", lambda _: made)
    return made


def test_every_form_is_held_against_the_plan_of_its_own_graph(
    context: BuildContext, library: Library
) -> None:
    library.wrong = ("fused", "unfused-windows", "unfused")
    made = engine_part(context, "vision")
    plans = {form: (one.attentions, dict(one.gemms)) for form, one in library.built.items()}
    assert plans == PLANS
    assert library.graphs["fused"] == context.path(context.onnx("vision"))
    for form, graph in library.graphs.items():
        assert computation_from_onnx(ir.load(graph)) == library.built[form]
    assert made.figures[0]["form"] == "float"
    assert made.figures[0]["computes"] == "4 fp32 products, 0 fused attentions"
    assert library.closed == [True] * 4


def test_every_engine_says_what_it_is(context: BuildContext, library: Library) -> None:
    library.wrong = ("fused",)
    engine_part(context, "vision")
    first, second = (json.loads(facts or "") for facts in library.facts)
    assert first == second
    assert (first["part"], first["target"], first["precision"]) == ("vision", "tensorrt", "fp16")
    assert [tensor["name"] for tensor in first["outputs"]] == [one.name for one in SPEC.outputs]


def test_a_build_begins_with_the_form_of_its_gpu(context: BuildContext, library: Library) -> None:
    library.first = "unfused"
    assert engine_part(context, "vision").figures[0]["form"] == "unfused"
    assert (list(library.built), library.asked) == (["unfused"], [()])


def test_without_a_gpu_nothing_is_run(context: BuildContext, library: Library) -> None:
    library.gpu = False
    made = engine_part(context, "vision")
    assert made.figures[0]["computes"] == "not readable here"
    assert library.closed == []
    assert made.notes == (
        "The engine is not verified on hardware: run samforge verify on a GPU it is for.",
    )


def test_the_inspector_is_believed_where_it_tells(context: BuildContext, library: Library) -> None:
    told = Computation(source="the engine inspector", gemms={}, convolutions={}, attentions=2)
    library.told = {"fused": told}
    made = engine_part(context, "vision")
    assert (made.figures[0]["computes"], made.notes) == ("2 fused attentions", ())
    report = json.loads(context.path("report/vision/engine.json").read_text())
    assert report["computation"]["source"] == "the engine inspector"
    assert report["engine"] == "parts/vision/vision.engine"  # a staging folder is gone by then
    assert report["stamp"] == "parts/vision/vision.engine.json"
    assert report["command"] == "trtexec --onnx=parts/vision/vision.onnx"
    assert list(engine_rows([("vision", report)])) == [
        EngineRow(
            part="vision",
            form="fused",
            build_s=1.0,
            bytes=4,
            products={},
            convolutions={},
            attentions=2,
            source="the engine inspector",
            version="11.0.0",
        )
    ]
    (unread,) = engine_rows([("text", {**report, "computation": None})])
    assert (unread.attentions, unread.products, unread.source) == (None, {}, "")


@pytest.mark.parametrize("silent", [True, False])
def test_an_inspector_that_tells_nothing_is_mentioned(
    silent: bool, context: BuildContext, library: Library
) -> None:
    library.silent, library.told = silent, {"fused": None}
    made = engine_part(context, "vision")
    assert (made.figures[0]["computes"], made.notes) == ("not readable here", (UNTOLD,))


@pytest.mark.parametrize(
    ("first", "gemms", "attentions", "message"),
    [
        ("fused", {"fp16": 2}, 1, "2 attentions should be fused, 1 are: the others run"),
        ("unfused", {"fp16": 2}, 1, "0 attentions should be fused, 1 are: those that were taken"),
        ("unfused", {"fp16": 2, "fp32": 2}, 0, "2 products run in fp32, 0 should."),
    ],
)
def test_an_engine_that_computes_otherwise_is_an_error(
    first: str,
    gemms: dict[str, int],
    attentions: int,
    message: str,
    context: BuildContext,
    library: Library,
) -> None:
    library.first = first
    found = Computation(source="the inspector", gemms=gemms, convolutions={}, attentions=attentions)
    library.told = {first: found}
    with pytest.raises(EngineError) as caught:
        engine_part(context, "vision")
    text = str(caught.value)
    assert text.startswith(f"What tensorrt made of vision, attention {first}, does not compute")
    assert message in text
    assert "Read from the inspector." in text
    assert list(library.built) == [first]  # no safer form can put this right
    assert library.closed == [True]
    assert not context.path("report/vision/engine.json").exists()


def test_more_fusion_is_a_difference_only_where_it_was_taken_apart() -> None:
    planned, found = (
        Computation(source="x", gemms={}, convolutions={}, attentions=n) for n in (7, 8)
    )
    assert lost_computation(planned, found) == ()
    (difference,) = lost_computation(planned, found, apart=True)
    assert difference == (
        "7 attentions should be fused, 8 are: those that were taken apart on purpose are fused "
        "again."
    )


def test_sessions_say_whether_they_can_be_inspected() -> None:
    plain = PlainSession({}, True, [])
    assert not isinstance(plain, InspectableSession)
    assert isinstance(TellingSession({}, True, [], None), InspectableSession)


@pytest.mark.parametrize(
    ("gpu", "version", "named", "expected"),
    [
        (BLACKWELL, "10.14.1.48", (), "unfused"),
        (BLACKWELL, "10.16.0.72", (), "unfused"),
        (BLACKWELL, "11.0.0.1", (), "fused"),
        (BLACKWELL, "10.14.1.48", ("89",), "fused"),
        (ADA, "10.14.1.48", (), "fused"),
        (ADA, "10.14.1.48", ("120",), "unfused"),
        (None, "10.14.1.48", (), "fused"),
        (BLACKWELL, None, (), "fused"),
    ],
)
def test_the_gpu_at_hand_decides_the_first_form(
    gpu: Gpu | None,
    version: str | None,
    named: tuple[str, ...],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def installed(flavour: Flavour) -> str | None:
        assert flavour in (TENSORRT, RTX)
        return version

    monkeypatch.setattr(backend_module, "gpu_here", lambda: gpu)
    monkeypatch.setattr(backend_module, "installed_version", installed)
    assert BACKEND.capabilities_here() == (() if gpu is None else (gpu.compute_capability,))
    assert BACKEND.first_form(named) == expected
    assert RTX_BACKEND.first_form(named) == "fused"


@pytest.mark.skipif(gpu_here() is not None, reason="there is a GPU here")
def test_without_a_gpu_there_is_no_capability_and_no_error() -> None:
    assert BACKEND.capabilities_here() == ()
    assert BACKEND.first_form() == "fused"
