"""Fused program -> Q/DQ program: as little in half as the gate allows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice

from torch import Tensor

from samforge.core.capabilities import TEXT_ENCODER, TRACKER_PARTS
from samforge.core.files import atomic_write_json
from samforge.measure import feature_cosine_limit
from samforge.measure.fidelity import compare_outputs
from samforge.steps.account import quantized_weights, settled
from samforge.steps.calibrate import calibration_samples, float_sessions
from samforge.steps.context import SMALL_IMAGE, BuildContext, StepOutput
from samforge.steps.facts import facts_of
from samforge.steps.tracker_trials import TrackerTrials
from samforge.steps.trials import Trials, computing, trial_session
from samforge.transform.export import exported_from_file, save_exported
from samforge.transform.quantize import (
    Calibrated,
    GroupDamage,
    LayerFidelity,
    Programs,
    calibrate,
    check_ranges,
    choose_kept,
    evened_weights,
    layer_fidelity,
    quantized_from_calibrated,
    sensitivity,
    smoothed_program,
)

Samples = Callable[[], Iterable[Mapping[str, Tensor]]]
FEW = 2
"""Samples on which every group of layers is tried alone."""


def quantize_part(context: BuildContext, name: str) -> StepOutput:
    """Quantize a part; where the gate does not hold, keep the worst groups in half.

    Raises:
        FidelityError: It does not hold with as much in half as the recipe allows.
    """
    samples = calibration_samples(context, name)
    floating = exported_from_file(context.path(context.fused(name)))
    settings = context.recipe.quantization
    calibrated = calibrate(floating, samples, part=name, settings=settings)
    programs = Programs(calibrated)
    table = _mixed(context, programs, samples)
    quantized = quantized_from_calibrated(
        calibrated, precision=context.recipe.precision, table=table, programs=programs
    )
    check_ranges(quantized.report)
    layers = _layers(context, calibrated, samples, table)
    report = f"report/{name}/quantization.json"
    if context.target.lowered:
        save_exported(smoothed_program(calibrated), context.path(context.smoothed(name)))
        scales = {path: one.activation_e4m3 for path, one in quantized.scales.items()}
        atomic_write_json(context.path(context.scales(name)), scales)
    if not context.target.steps:
        artifact, program = context.artifact(name), computing(context, quantized.program, name)
    else:
        artifact, program = context.quantized(name), quantized.program
    save_exported(program, context.path(artifact), facts=facts_of(context, name))
    kept = [row.group for row in table if row.kept]
    weights = quantized_weights(floating, evened_weights(calibrated, kept=kept), quantized.program)
    account, counts = settled(context, "quantize", name, weights)
    atomic_write_json(context.path(report), {"report": quantized.report, "layers": layers})
    share = {
        "part": name,
        "quantized_share": quantized.report.quantized_share,
        "kept_share": quantized.report.kept_share,
        "quantized_layers": len(quantized.report.layers),
        "kept": kept,
    }
    more = (context.smoothed(name), context.scales(name)) if context.target.lowered else ()
    return StepOutput(outputs=(artifact, report, account, *more), figures=(share, counts))


def _mixed(context: BuildContext, programs: Programs, samples: Samples) -> tuple[GroupDamage, ...]:
    """The sensitivity table, with what is kept.

    Measuring it runs the part once for every group: of a large model, only where it is needed.
    """
    if context.recipe.random_weights or not context.recipe.quantization.mixed:
        return ()
    calibrated = programs.calibrated
    gate = _gate(context, programs)
    everything = gate.holds(())
    if everything and context.model.image.size > SMALL_IMAGE:
        return ()
    few: Samples = lambda: islice(samples(), FEW)  # noqa: E731
    table = sensitivity(calibrated, few, precision=context.recipe.precision)
    if everything:
        return table
    # A tracker whose layers stay in float is right, and a build that stops for them helps nobody.
    most = 1.0 if calibrated.part in TRACKER_PARTS else context.recipe.quantization.max_kept
    return choose_kept(table, gate.holds, max_kept=most, likely=gate.likely)


def _layers(
    context: BuildContext, calibrated: Calibrated, samples: Samples, table: Iterable[GroupDamage]
) -> tuple[LayerFidelity, ...]:
    """Signal to noise behind every quantized layer, on one sample."""
    kept = [row.group for row in table if row.kept]
    one: Samples = lambda: islice(samples(), 1)  # noqa: E731
    return layer_fidelity(calibrated, one, precision=context.recipe.precision, kept=kept)


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """Whether fidelity holds with this part quantized and the others in float."""

    holds: Callable[[tuple[str, ...]], bool]
    """At the worse end of every interval, where there is evidence enough."""
    likely: Callable[[tuple[str, ...]], bool]
    """By the figures themselves."""


def _gate(context: BuildContext, programs: Programs) -> Gate:
    """What was asked once is remembered."""
    if programs.calibrated.part in TRACKER_PARTS:
        holds = lru_cache(maxsize=None)(TrackerTrials(context, programs).holds)
        return Gate(holds=holds, likely=holds)
    if TEXT_ENCODER not in context.parts:  # then nothing was asked when it was calibrated
        holds = lru_cache(maxsize=None)(_feature_gate(context, programs))
        return Gate(holds=holds, likely=holds)
    verdict = lru_cache(maxsize=None)(partial(Trials(context, programs).verdict))

    def holds_surely(kept: tuple[str, ...]) -> bool:
        found = verdict(kept)
        # Too few images to be sure of anything: the figures decide, and the end asks for evidence.
        return found.likely if found.lacking else found.held

    return Gate(holds=holds_surely, likely=lambda kept: verdict(kept).likely)


def _feature_gate(context: BuildContext, programs: Programs) -> Callable[[tuple[str, ...]], bool]:
    part, recipe = programs.calibrated.part, context.recipe
    limit = feature_cosine_limit(recipe.precision, recipe.gates)
    session = float_sessions(context, [part])[part]
    first = next(iter(calibration_samples(context, part)()))
    sample = {name: tensor.numpy() for name, tensor in first.items()}
    reference = session.run(sample)
    session.close()

    def holds(kept: tuple[str, ...]) -> bool:
        trial = trial_session(context, programs, kept)
        figures = compare_outputs(reference, trial.run(sample))
        trial.close()
        return min(figure.cosine for figure in figures) >= limit

    return holds
