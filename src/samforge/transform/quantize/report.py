"""What quantization did to one part, as it goes into the bundle's report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from samforge.core.errors import BuildError
from samforge.transform.quantize.calibration import Calibrated
from samforge.transform.quantize.observers import HALF_STEPS
from samforge.transform.quantize.pairs import NotSmoothed
from samforge.transform.quantize.placement import LeftFloat
from samforge.transform.quantize.quantizer import SMALLEST_SCALE
from samforge.transform.quantize.sensitivity import GroupDamage

LEAST_COVERED, MOST_COVERED = 0.95, 1.05
"""Of the largest value seen: bins of a histogram end beyond it, and all observers but min-max may
cut off what is rare."""
SHOWN = 6
"""Layers that an error names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizedLayer:
    """One operator that computes in 8 bits."""

    path: str
    """Module path."""
    operator: str
    """``linear``, ``conv2d`` or ``conv_transpose2d``."""
    group: str
    """What it is kept or quantized with."""
    share: float
    """Of the part's multiplications, 0 to 1."""
    activation_range: float
    """Largest magnitude of its input that is represented."""
    largest_seen: float
    """Largest magnitude of its input that calibration saw, smoothed like it."""
    smoothed: bool
    """Whether the channels that it reads are evened out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SmoothedPair:
    """One weight whose channels are evened out against those that read them."""

    writer: str
    """Module path."""
    operator: str
    """``layer_norm``, ``group_norm``, ``linear``, ``conv2d`` or ``conv_transpose2d``."""
    readers: tuple[str, ...]
    """Module paths of the linears and convolutions that read it."""
    smallest: float
    """Smallest factor."""
    largest: float
    """Largest factor: what the most prominent channel is divided by."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizeReport:
    """What quantization did to one part."""

    part: str
    """Name of the part."""
    precision: str
    """``int8`` or ``fp8``."""
    observer: str
    """How ranges were chosen."""
    samples: int
    """How many samples set them."""
    moving: tuple[str, ...]
    """Layers whose range the last sample widened noticeably."""
    quantized_share: float
    """Of the part's multiplications, 0 to 1."""
    kept_share: float
    """Of the part's multiplications, kept in half for fidelity."""
    layers: tuple[QuantizedLayer, ...]
    """What computes in 8 bits."""
    left: tuple[LeftFloat, ...]
    """What does not, with the reason."""
    smoothed: tuple[SmoothedPair, ...]
    """Weights whose channels are evened out."""
    not_smoothed: tuple[NotSmoothed, ...]
    """Weights before quantized operators that are not, with the reason."""
    groups: tuple[GroupDamage, ...]
    """The sensitivity table; empty where it was not measured."""


def report_from_calibrated(
    calibrated: Calibrated, *, precision: str, table: Iterable[GroupDamage] = ()
) -> QuantizeReport:
    """Say what is quantized, what is not and why.

    Args:
        calibrated: The part.
        precision: ``int8`` or ``fp8``.
        table: From ``choose_kept``; what it keeps is not quantized.
    """
    rows = tuple(table)
    kept = {row.group: row.reason for row in rows if row.kept}
    behind = calibrated.columns()
    total = calibrated.products
    quantized = {site.node for site in calibrated.sites if site.group not in kept}
    layers = tuple(
        QuantizedLayer(
            path=site.path,
            operator=site.operator,
            group=site.group,
            share=site.products / total,
            activation_range=calibrated.input_scale[site.input] * HALF_STEPS,
            largest_seen=calibrated.largest_seen[site.input],
            smoothed=site.node in behind,
        )
        for site in calibrated.sites
        if site.group not in kept
    )
    in_half = tuple(
        LeftFloat(
            path=site.path,
            operator=site.operator,
            share=site.products / total,
            reason=f"kept in half for fidelity: {kept[site.group]}",
        )
        for site in calibrated.sites
        if site.group in kept
    )
    return QuantizeReport(
        part=calibrated.part,
        precision=precision,
        observer=calibrated.settings.observer,
        samples=calibrated.samples,
        moving=calibrated.moving,
        quantized_share=sum(layer.share for layer in layers),
        kept_share=sum(layer.share for layer in in_half),
        layers=layers,
        left=(*calibrated.left, *in_half),
        smoothed=tuple(
            SmoothedPair(
                writer=s.pair.writer,
                operator=s.pair.operator,
                readers=tuple(one.path for one in s.pair.readers.values()),
                smallest=float(s.factors.min()),
                largest=float(s.factors.max()),
            )
            for s in calibrated.folded(quantized)
        ),
        not_smoothed=calibrated.not_smoothed,
        groups=rows,
    )


def check_ranges(report: QuantizeReport) -> None:
    """Make sure that every range fits what calibration saw.

    No observer represents more than the largest value, and min-max no less.

    Raises:
        BuildError: Names the layers, their ranges and what was seen.
    """
    least = LEAST_COVERED if report.observer == "min-max" else 0.0
    strange = [
        f"{layer.path} ({layer.activation_range:.4g}, seen {layer.largest_seen:.4g})"
        for layer in report.layers
        if not least * layer.largest_seen
        <= layer.activation_range
        <= max(MOST_COVERED * layer.largest_seen, SMALLEST_SCALE * HALF_STEPS)
    ]
    if strange:
        more = f" and {len(strange) - SHOWN} more" if len(strange) > SHOWN else ""
        raise BuildError(
            f"{len(strange)} of {len(report.layers)} quantized layers of {report.part} have "
            f"another range than calibration gave: {', '.join(strange[:SHOWN])}{more}. "
            "Nothing was published."
        )
