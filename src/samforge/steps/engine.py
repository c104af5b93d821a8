"""ONNX -> TensorRT engine: the fastest form of attention that holds on the GPU at hand."""

from __future__ import annotations

import re
import statistics
import time
from pathlib import Path
from typing import cast

import numpy as np
import onnx_ir as ir

from samforge.backends import backend_from_name
from samforge.backends.tensorrt.backend import TensorRTBackend
from samforge.backends.tensorrt.build import EngineReport
from samforge.backends.tensorrt.capabilities import first_form
from samforge.backends.tensorrt.ladder import Verdict, safest_form
from samforge.backends.tensorrt.settings import AxisRange, EngineSettings
from samforge.core.files import atomic_write_json
from samforge.measure import feature_cosine_limit
from samforge.measure.fidelity import compare_outputs
from samforge.steps.workshop import Made, Workshop
from samforge.transform.onnx.attention_forms import forms_of, reform_attention
from samforge.transform.onnx.convert import release_model, save_onnx
from samforge.transform.onnx.planned import computation_from_onnx

TIMED = 10
"""Calls whose median is a form's latency."""


def engine_part(shop: Workshop, name: str) -> Made:
    """Build a part's engine, and a safer one where it does not compute what fp32 does.

    Without a GPU that can run it, the form to begin with is kept and the bundle says that nothing
    was verified.

    Raises:
        EngineError: The engine computes in other formats than its graph plans.
        FidelityError: No form of attention holds on this GPU.
    """
    backend = cast(TensorRTBackend, backend_from_name(shop.recipe.target))
    major, minor, *_ = map(int, re.findall(r"\d+", f"{backend.build_version()} 0 0"))
    model = ir.load(shop.path(shop.onnx(name)))
    forms, planned = forms_of(model), computation_from_onnx(model)
    release_model(model)
    settings = _settings(shop)

    def build(form: str) -> EngineReport:
        onnx = _reformed(shop, name, form)
        return backend.engine_from_onnx(
            onnx,
            shop.path(shop.artifact(name)),
            shop.spec(name),
            settings,
            form=form,
            planned=planned if form == "fused" else None,
        )

    def verify(_: EngineReport) -> Verdict | None:
        return _verdict(shop, name) if backend.version() is not None else None

    capabilities = shop.recipe.compute_capabilities
    first = first_form(backend.flavour, (major, minor), capabilities)
    ladder = safest_form(build, verify, forms=forms, first=first)
    report = ladder.chosen.built
    summary = f"report/{name}/engine.json"
    atomic_write_json(shop.path(summary), report)
    figures = {
        "part": name,
        "form": ladder.chosen.form,
        "computes": str(report.computation) if report.computation else "not readable here",
        "trtexec": report.command.replace(f"{shop.root}/", ""),
    }
    return Made(
        outputs=(shop.artifact(name), _relative(shop, report.stamp), summary),
        figures=(figures,),
        notes=ladder.notes,
    )


def _settings(shop: Workshop) -> EngineSettings:
    recipe, engine = shop.recipe, shop.recipe.engine
    return EngineSettings(
        precision=recipe.precision,
        compute_capabilities=recipe.compute_capabilities,
        axes={
            "batch": AxisRange(max=engine.batch),
            "prompts": AxisRange(max=engine.prompts),
            "boxes": AxisRange(max=engine.boxes),
        },
        workspace_gib=engine.workspace_gib,
        optimization_level=engine.optimization_level,
        timing_cache=engine.timing_cache,
    )


def _reformed(shop: Workshop, name: str, form: str) -> Path:
    """The graph with its attention in a form."""
    source = shop.path(shop.onnx(name))
    if form == "fused":
        return source
    model = reform_attention(ir.load(source), form)
    target = shop.path(f"work/{name}/{form}.onnx")
    save_onnx(model, target)
    return target


def _verdict(shop: Workshop, name: str) -> Verdict:
    """Run the engine on the part's samples."""
    session = backend_from_name(shop.recipe.target).session_from_artifact(
        shop.path(shop.artifact(name)), shop.spec(name)
    )
    cosines, times = [], []
    for path in shop.samples(name):
        with np.load(shop.path(path)) as sample:
            inputs = {tensor.name: sample[tensor.name] for tensor in shop.spec(name).inputs}
            wanted = {tensor.name: sample[tensor.name] for tensor in shop.spec(name).outputs}
        cosines += [figure.cosine for figure in compare_outputs(wanted, session.run(inputs))]
        for _ in range(TIMED):
            start = time.perf_counter()
            session.run(inputs)
            times.append(1000 * (time.perf_counter() - start))
    session.close()
    limit = feature_cosine_limit(shop.recipe.precision, shop.recipe.gates)
    return Verdict(
        holds=min(cosines) >= limit,
        figures=f"cosine {min(cosines):.4f}, the gate is {limit:g}",
        latency_ms=statistics.median(times),
    )


def _relative(shop: Workshop, path: Path) -> str:
    return path.resolve().relative_to(shop.root.resolve()).as_posix()
