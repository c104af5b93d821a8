"""The step as a whole: float program and samples -> Q/DQ program, its report and its scales."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.export import ExportedProgram

from samforge.core.errors import SettingError
from samforge.core.recipe import Quantization
from samforge.core.targets import QUANTIZED
from samforge.transform.quantize.calibration import (
    Calibrated,
    Progress,
    Samples,
    calibrate,
)
from samforge.transform.quantize.emit import Programs
from samforge.transform.quantize.report import QuantizeReport, report_from_calibrated
from samforge.transform.quantize.sensitivity import GroupDamage
from samforge.transform.quantize.simulate import ACTIVATION_TO_E4M3, WEIGHT_TO_E4M3


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StaticScales:
    """Scales of one quantized operator, for backends that quantize by themselves."""

    activation: float
    """int8 scale of its input, after smoothing."""
    weight: Tensor
    """int8 scales of its weight, after smoothing, (output channels,): its largest magnitudes are
    127 times as much."""

    @property
    def activation_e4m3(self) -> float:
        """The same range in float8_e4m3fn."""
        return self.activation * ACTIVATION_TO_E4M3

    @property
    def weight_e4m3(self) -> Tensor:
        """The same ranges in float8_e4m3fn, (output channels,)."""
        return self.weight * WEIGHT_TO_E4M3


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Quantized:
    """A quantized part."""

    program: ExportedProgram
    """int8 Q/DQ pairs around float operators, weights stored as int8."""
    report: QuantizeReport
    """What is quantized, what is not and why."""
    scales: Mapping[str, StaticScales]
    """By module path."""


def quantize(
    program: ExportedProgram,
    samples: Samples,
    *,
    part: str,
    settings: Quantization,
    precision: str,
    progress: Progress | None = None,
) -> Quantized:
    """Quantize a part with everything that may be quantized.

    For mixed precision take the steps one by one: :func:`calibrate`, ``sensitivity``,
    ``choose_kept``, :func:`quantized_from_calibrated`.

    Args:
        program: Float, fused or not.
        samples: Gives a fresh run through the calibration samples every time it is called.
        part: Name of the part.
        settings: Where and how to quantize.
        precision: ``int8`` or ``fp8``: the program is the same, its flavours differ.
        progress: Told after every sample.

    Raises:
        SettingError: A skip pattern matches nothing, or the precision has no activations to
            quantize.
        BuildError: There are no samples, or a layer's input holds NaN or infinity.
    """
    calibrated = calibrate(program, samples, part=part, settings=settings, progress=progress)
    return quantized_from_calibrated(calibrated, precision=precision)


def quantized_from_calibrated(
    calibrated: Calibrated,
    *,
    precision: str,
    table: Iterable[GroupDamage] = (),
    programs: Programs | None = None,
) -> Quantized:
    """Quantize a part with some groups kept in half.

    Args:
        calibrated: The part with its ranges.
        precision: ``int8`` or ``fp8``.
        table: From ``choose_kept``; empty quantizes everything.
        programs: Of the same part: the one that was made last need not be made again.

    Raises:
        SettingError: The precision has no activations to quantize.
    """
    if precision not in QUANTIZED:
        raise SettingError(
            f"precision {precision} has no activations to quantize; {' and '.join(QUANTIZED)} have."
        )
    rows = tuple(table)
    kept = {row.group for row in rows if row.kept}
    folded = calibrated.folded({s.node for s in calibrated.sites if s.group not in kept})
    return Quantized(
        program=(programs or Programs(calibrated)).with_kept(kept),
        report=report_from_calibrated(calibrated, precision=precision, table=rows),
        scales={
            site.path: StaticScales(
                activation=calibrated.input_scale[site.input],
                weight=calibrated.folded_scale(site, folded),
            )
            for site in calibrated.sites
            if site.group not in kept
        },
    )
