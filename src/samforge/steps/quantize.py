"""Fused program -> Q/DQ program: as little in half as the gate allows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from itertools import islice

from torch import Tensor
from torch.export import ExportedProgram

from samforge.backends.torch import TorchSession
from samforge.core.errors import FidelityError
from samforge.core.files import atomic_write_json
from samforge.core.session import Session
from samforge.measure import (
    check_predictions,
    feature_cosine_limit,
    measure_segmenter,
)
from samforge.measure.fidelity import compare_outputs
from samforge.steps.calibrate import (
    calibration_answers,
    calibration_samples,
    float_sessions,
    segmenter_of,
)
from samforge.steps.facts import facts_of
from samforge.steps.images import calibration_images
from samforge.steps.workshop import SMALL_IMAGE, Made, Workshop
from samforge.transform.export import exported_from_file, save_exported
from samforge.transform.quantize import (
    Calibrated,
    GroupDamage,
    LayerFidelity,
    Programs,
    calibrate,
    choose_kept,
    e4m3_program,
    layer_fidelity,
    quantized_from_calibrated,
    sensitivity,
    smoothed_program,
)

Samples = Callable[[], Iterable[Mapping[str, Tensor]]]
FEW = 2
"""Samples on which every group of layers is tried alone."""
TRIED_IMAGES = 8
"""Images on which the gate is asked while groups are chosen; 2 of a large model."""


def quantize_part(shop: Workshop, name: str) -> Made:
    """Quantize a part; where the gate does not hold, keep the worst groups in half.

    Raises:
        FidelityError: It does not hold with as much in half as the recipe allows.
    """
    samples = calibration_samples(shop, name)
    floating = exported_from_file(shop.path(shop.fused(name)))
    settings = shop.recipe.quantization
    calibrated = calibrate(floating, samples, part=name, settings=settings)
    programs = Programs(calibrated)
    table = _mixed(shop, programs, samples)
    quantized = quantized_from_calibrated(
        calibrated, precision=shop.recipe.precision, table=table, programs=programs
    )
    layers = _layers(shop, calibrated, samples, table)
    report = f"report/{name}/quantization.json"
    if shop.recipe.target == "inductor":
        save_exported(smoothed_program(calibrated), shop.path(shop.smoothed(name)))
        scales = {path: one.activation_e4m3 for path, one in quantized.scales.items()}
        atomic_write_json(shop.path(shop.scales(name)), scales)
    if shop.recipe.target == "torch":
        artifact, program = shop.artifact(name), _computing(shop, quantized.program, name)
    else:
        artifact, program = shop.quantized(name), quantized.program
    save_exported(program, shop.path(artifact), facts=facts_of(shop, name))
    atomic_write_json(shop.path(report), {"report": quantized.report, "layers": layers})
    share = {
        "part": name,
        "quantized_share": quantized.report.quantized_share,
        "kept_share": quantized.report.kept_share,
    }
    more = (shop.smoothed(name), shop.scales(name)) if shop.recipe.target == "inductor" else ()
    return Made(outputs=(artifact, report, *more), figures=(share,))


def _mixed(shop: Workshop, programs: Programs, samples: Samples) -> tuple[GroupDamage, ...]:
    """The sensitivity table, with what is kept.

    Measuring it runs the part once for every group: of a large model, only where it is needed.
    """
    if shop.recipe.random_weights or not shop.recipe.quantization.mixed:
        return ()
    calibrated = programs.calibrated
    holds = _gate(shop, programs)
    everything = holds(())
    if everything and shop.model.image.size > SMALL_IMAGE:
        return ()
    few: Samples = lambda: islice(samples(), FEW)  # noqa: E731
    table = sensitivity(calibrated, few, precision=shop.recipe.precision)
    if everything:
        return table
    return choose_kept(table, holds, max_kept=shop.recipe.quantization.max_kept)


def _layers(
    shop: Workshop, calibrated: Calibrated, samples: Samples, table: Iterable[GroupDamage]
) -> tuple[LayerFidelity, ...]:
    """Signal to noise behind every quantized layer, on one sample."""
    kept = [row.group for row in table if row.kept]
    one: Samples = lambda: islice(samples(), 1)  # noqa: E731
    return layer_fidelity(calibrated, one, precision=shop.recipe.precision, kept=kept)


def _gate(shop: Workshop, programs: Programs) -> Callable[[tuple[str, ...]], bool]:
    """Whether fidelity holds with this part quantized and the others in float.

    What was asked once is remembered.
    """
    ask = _feature_gate if shop.model.text is None else _detection_gate
    return lru_cache(maxsize=None)(ask(shop, programs))


def _detection_gate(shop: Workshop, programs: Programs) -> Callable[[tuple[str, ...]], bool]:
    part = programs.calibrated.part
    # Only phrases go through the detector without boxes: boxes would find no difference.
    boxes = "detector_boxes" in shop.parts and part != "detector"
    others = [name for name in shop.parts if name != part and (boxes or name != "detector_boxes")]
    sessions = float_sessions(shop, others)
    count = 2 if shop.model.image.size > SMALL_IMAGE else TRIED_IMAGES
    images = list(islice(calibration_images(shop), count))
    answers = calibration_answers(shop)

    def holds(kept: tuple[str, ...]) -> bool:
        trial = _trial(shop, programs, kept)
        segmenter = segmenter_of(shop, {**sessions, part: trial})
        measured = measure_segmenter(segmenter, images, boxes=boxes, reference=answers)
        trial.close()
        if measured.fidelity is None:
            return True
        try:
            check_predictions(measured.fidelity, shop.recipe.precision, shop.recipe.gates)
        except FidelityError:
            return False
        return True

    return holds


def _feature_gate(shop: Workshop, programs: Programs) -> Callable[[tuple[str, ...]], bool]:
    part, recipe = programs.calibrated.part, shop.recipe
    limit = feature_cosine_limit(recipe.precision, recipe.gates)
    session = float_sessions(shop, [part])[part]
    first = next(iter(calibration_samples(shop, part)()))
    sample = {name: tensor.numpy() for name, tensor in first.items()}
    reference = session.run(sample)
    session.close()

    def holds(kept: tuple[str, ...]) -> bool:
        trial = _trial(shop, programs, kept)
        figures = compare_outputs(reference, trial.run(sample))
        trial.close()
        return min(figure.cosine for figure in figures) >= limit

    return holds


def _trial(shop: Workshop, programs: Programs, kept: tuple[str, ...]) -> Session:
    """The part with some groups kept, run by PyTorch."""
    part = programs.calibrated.part
    program = _computing(shop, programs.with_kept(kept), part)
    return TorchSession(program, shop.spec(part), f"a trial of {part}")


def _computing(shop: Workshop, program: ExportedProgram, part: str) -> ExportedProgram:
    """The program in the number format of the recipe; Q/DQ is int8, other flavours follow it."""
    return e4m3_program(program, part) if shop.recipe.precision == "fp8" else program
