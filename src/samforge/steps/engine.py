"""ONNX -> TensorRT engine: the fastest form of attention that holds on the GPU at hand."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import onnx_ir as ir

from samforge.backends import backend_from_name
from samforge.backends.tensorrt.backend import TensorRTBackend
from samforge.backends.tensorrt.build import EngineReport
from samforge.backends.tensorrt.capabilities import UNTOUCHED
from samforge.backends.tensorrt.ladder import Ladder, Verdict, safest_form
from samforge.backends.tensorrt.settings import AxisRange, EngineSettings
from samforge.core.computation import Computation, check_computation
from samforge.core.files import atomic_write_json
from samforge.core.session import InspectableSession, Session
from samforge.measure import feature_cosine_limit
from samforge.measure.fidelity import compare_outputs
from samforge.steps.context import BuildContext, StepOutput
from samforge.steps.facts import facts_of
from samforge.transform.onnx.attention_forms import forms_of, reform_attention
from samforge.transform.onnx.convert import release_model, save_onnx
from samforge.transform.onnx.planned import computation_from_onnx

TIMED = 10
"""Calls whose median is a form's latency."""
UNTOLD = "What the engine computes in which format could not be read from the inspector."
"""Said where the check against the plan on the GPU had nothing to read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Built:
    """An engine in one form of attention, and what its graph plans."""

    form: str
    """Form of attention."""
    planned: Computation
    """Of the graph in this form."""
    report: EngineReport
    """What the build made."""


def engine_part(context: BuildContext, name: str) -> StepOutput:
    """Build a part's engine, and a safer one where it does not compute what fp32 does.

    Without a GPU that can run it, the form to begin with is kept and the bundle says that nothing
    was verified.

    Raises:
        EngineError: The engine computes in other formats than its graph plans, by the build's own
            reading or by the inspector's on the GPU.
        FidelityError: No form of attention holds on this GPU.
    """
    backend = cast(TensorRTBackend, backend_from_name(context.recipe.target))
    settings = replace(_settings(context), facts=facts_of(context, name))

    def build(form: str) -> _Built:
        onnx, planned = _reformed(context, name, form)
        report = backend.engine_from_onnx(
            onnx,
            context.path(context.artifact(name)),
            context.spec(name),
            settings,
            form=form,
            planned=planned,
        )
        return _Built(form=form, planned=planned, report=report)

    def verify(built: _Built) -> Verdict | None:
        return _verdict(context, name, built) if backend.version() is not None else None

    first = backend.first_form(settings.compute_capabilities)
    ladder = safest_form(build, verify, forms=_forms(context, name), first=first)
    return _made(context, name, ladder)


def _made(context: BuildContext, name: str, ladder: Ladder[_Built]) -> StepOutput:
    """Write the summary of the engine that was chosen."""
    built, verdict = ladder.chosen.built.report, ladder.chosen.verdict
    computation, notes = built.computation, ladder.notes
    if verdict is not None and verdict.computation is not None:
        computation = verdict.computation
    elif verdict is not None:
        notes += (UNTOLD,)
    stamp = _relative(context, built.stamp)
    # Paths as they are in the bundle: the staging folder is gone by then.
    report = replace(
        built,
        engine=Path(context.artifact(name)),
        stamp=Path(stamp),
        command=built.command.replace(f"{context.root}/", ""),
        computation=computation,
    )
    summary = f"report/{name}/engine.json"
    atomic_write_json(context.path(summary), report)
    figures = {
        "part": name,
        "form": ladder.chosen.form,
        "computes": str(computation) if computation else "not readable here",
        "trtexec": report.command,
    }
    return StepOutput(
        outputs=(context.artifact(name), stamp, summary), figures=(figures,), notes=notes
    )


def _settings(context: BuildContext) -> EngineSettings:
    recipe, engine = context.recipe, context.recipe.engine
    return EngineSettings(
        precision=recipe.precision,
        compute_capabilities=recipe.compute_capabilities,
        axes={name: AxisRange(max=size) for name, size in engine.largest().items()},
        workspace_gib=engine.workspace_gib,
        optimization_level=engine.optimization_level,
        timing_cache=engine.timing_cache,
    )


def _forms(context: BuildContext, name: str) -> tuple[str, ...]:
    """Forms of attention that differ for the part's graph."""
    model = ir.load(context.path(context.onnx(name)))
    forms = forms_of(model)
    release_model(model)
    return forms


def _reformed(context: BuildContext, name: str, form: str) -> tuple[Path, Computation]:
    """The graph with its attention in a form, and what it plans in that form."""
    source = context.path(context.onnx(name))
    model = reform_attention(ir.load(source), form)
    planned = computation_from_onnx(model)
    if form == UNTOUCHED:
        release_model(model)
        return source, planned
    target = context.path(f"work/{name}/{form}.onnx")
    save_onnx(model, target)
    return target, planned


def _verdict(context: BuildContext, name: str, built: _Built) -> Verdict:
    """Run the engine on the part's samples, and hold its inspector against the plan.

    Raises:
        EngineError: The inspector tells other formats, or other fusions, than planned.
    """
    artifact = context.path(context.artifact(name))
    session = backend_from_name(context.recipe.target).session_from_artifact(
        artifact, context.spec(name)
    )
    try:
        cosines, times = _compared(context, name, session)
        # After the runs: formats of layers with dynamic shapes are known by then.
        found = session.computation() if isinstance(session, InspectableSession) else None
    finally:
        session.close()
    if found is not None:
        made = f"{context.recipe.target} made of {name}, attention {built.form},"
        check_computation(made, built.planned, found, apart=built.form != UNTOUCHED)
    limit = feature_cosine_limit(context.recipe.precision, context.recipe.gates)
    return Verdict(
        holds=min(cosines) >= limit,
        figures=f"cosine {min(cosines):.4f}, the gate is {limit:g}",
        latency_ms=statistics.median(times),
        computation=found,
    )


def _compared(
    context: BuildContext, name: str, session: Session
) -> tuple[list[float], list[float]]:
    """Cosine of every output to fp32's, and milliseconds of every timed call."""
    cosines, times = [], []
    for path in context.samples(name):
        with np.load(context.path(path)) as sample:
            inputs = {tensor.name: sample[tensor.name] for tensor in context.spec(name).inputs}
            wanted = {tensor.name: sample[tensor.name] for tensor in context.spec(name).outputs}
        cosines += [figure.cosine for figure in compare_outputs(wanted, session.run(inputs))]
        for _ in range(TIMED):
            start = time.perf_counter()
            session.run(inputs)
            times.append(1000 * (time.perf_counter() - start))
    return cosines, times


def _relative(context: BuildContext, path: Path) -> str:
    return path.resolve().relative_to(context.root.resolve()).as_posix()
