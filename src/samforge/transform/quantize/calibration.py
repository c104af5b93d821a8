"""Program and samples -> ranges: stream samples through the graph, keep only what they span."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

from samforge.core.errors import BuildError, SamforgeWarning
from samforge.core.recipe import Quantization
from samforge.transform.quantize.observers import HALF_STEPS
from samforge.transform.quantize.placement import LeftFloat, placement
from samforge.transform.quantize.quantizer import SMALLEST_SCALE, SiteQuantizer, weight_scale
from samforge.transform.quantize.sites import Site, constant
from samforge.transform.quantize.smooth import (
    NotSmoothed,
    Smoothable,
    column_max,
    smoothable_norms,
    smoothing_factors,
)
from samforge.transform.quantize.watch import ChannelWatch, NotFinite, RangeWatch, Watch

MOVED = 0.1
"""A range that the last sample widened by more than this share is still moving."""
NAMED = 5
"""At most so many layers in a warning."""

Samples = Callable[[], Iterable[Mapping[str, Tensor]]]
"""Gives a fresh run through the same samples every time: inputs of the part by name."""
Progress = Callable[[str, int], None]
"""Told after every sample: ``ranges`` or ``smoothed ranges``, and how many are done."""


class CalibrationWarning(SamforgeWarning):
    """Ranges of activations have not settled: more samples would widen them."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Smoothing:
    """A LayerNorm whose channels are evened out."""

    norm: Smoothable
    """Which."""
    factors: Tensor
    """(channels,) powers of two: activations are divided by them, columns multiplied."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Calibrated:
    """A float program and all that is needed to quantize any choice of its operators."""

    program: ExportedProgram
    """The float program, as it came."""
    part: str
    """Name of the part."""
    settings: Quantization
    """Where and how."""
    sites: tuple[Site, ...]
    """Operators that may be quantized."""
    left: tuple[LeftFloat, ...]
    """Operators that stay float by rule."""
    products: int
    """Multiplications of the whole part."""
    input_scale: Mapping[str, float]
    """Scale of each observed tensor after smoothing, by node."""
    weight_scale: Mapping[str, Tensor]
    """Scales of each site's weight after smoothing, (output channels,), by the site's node."""
    smoothings: tuple[Smoothing, ...]
    """LayerNorms that are smoothed."""
    not_smoothed: tuple[NotSmoothed, ...]
    """LayerNorms in front of quantized linears that are not."""
    samples: int
    """How many samples set the ranges."""
    moving: tuple[str, ...]
    """Layers whose range the last sample widened noticeably."""

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups of sites, in the order of the graph."""
        return tuple(dict.fromkeys(site.group for site in self.sites))

    def factors(self) -> dict[str, Tensor]:
        """Smoothing factors by the node of each linear they reach."""
        return {node: s.factors for s in self.smoothings for node in s.norm.linears}


def calibrate(
    program: ExportedProgram,
    samples: Samples,
    *,
    part: str,
    settings: Quantization,
    progress: Progress | None = None,
) -> Calibrated:
    """Find where to quantize and measure the ranges there.

    One pass over the samples; a second one over smoothed tensors where the observer needs more than
    their extremes.

    Args:
        program: Float, fused or not.
        samples: Gives a fresh run through the samples; nothing of them is kept.
        part: Name of the part, for patterns and messages.
        settings: Where and how to quantize.
        progress: Told after every sample.

    Raises:
        SettingError: A skip pattern matches nothing.
        BuildError: There are no samples, or a layer's input holds NaN or infinity.
    """
    graph = program.module()
    source = _Source(program=program, samples=samples, part=part, progress=progress)
    placed = placement(graph, part, settings)
    norms, not_smoothed = smoothable_norms(graph, placed.sites, part, settings)
    watches = _watches(placed.sites, norms, settings)
    count = source.observe(placed.sites, watches, "ranges")
    smoothings = tuple(
        Smoothing(
            norm=norm,
            factors=smoothing_factors(
                torch.stack([watches[name].maxima for name in norm.inputs]).amax(0),
                column_max(graph, norm),
                settings.smooth_alpha,
            ),
        )
        for norm in norms
    )
    ranges = {n: w.range() for n, w in watches.items() if isinstance(w, RangeWatch)}
    if settings.observer == "min-max":
        ranges |= {
            name: float((watches[name].maxima / smoothing.factors).max())
            for smoothing in smoothings
            for name in smoothing.norm.inputs
        }
    elif smoothings:
        second = _second_watches(placed.sites, smoothings, settings)
        behind = tuple(site for site in placed.sites if site.input in second)
        source.observe(behind, second, "smoothed ranges")
        ranges |= {name: watch.range() for name, watch in second.items()}
        watches |= second
    moving = _moving(watches)
    _warn(part, moving, count)
    factors = {node: s.factors for s in smoothings for node in s.norm.linears}
    return Calibrated(
        program=program,
        part=part,
        settings=settings,
        sites=placed.sites,
        left=placed.left,
        products=placed.products,
        input_scale={n: max(r / HALF_STEPS, SMALLEST_SCALE) for n, r in ranges.items()},
        weight_scale={
            site.node: weight_scale(
                smoothed(constant(graph, str(site.weight)), factors.get(site.node)),
                site.channel_axis,
            )
            for site in placed.sites
        },
        smoothings=smoothings,
        not_smoothed=not_smoothed,
        samples=count,
        moving=moving,
    )


def smoothed(weight: Tensor, factors: Tensor | None) -> Tensor:
    """Multiply the input columns of a linear's weight."""
    return weight if factors is None else weight.detach() * factors


def _paths(sites: Iterable[Site]) -> dict[str, tuple[str, ...]]:
    """Module paths of the layers that read each tensor."""
    paths: dict[str, tuple[str, ...]] = {}
    for site in sites:
        paths[site.input] = (*paths.get(site.input, ()), site.path)
    return paths


def _watches(
    sites: tuple[Site, ...], norms: tuple[Smoothable, ...], settings: Quantization
) -> dict[str, Watch]:
    behind_norms = {name for norm in norms for name in norm.inputs}
    return {
        name: ChannelWatch(paths)
        if name in behind_norms
        else RangeWatch(paths, settings.observer, None)
        for name, paths in _paths(sites).items()
    }


def _second_watches(
    sites: tuple[Site, ...], smoothings: tuple[Smoothing, ...], settings: Quantization
) -> dict[str, RangeWatch]:
    factors = {name: s.factors for s in smoothings for name in s.norm.inputs}
    return {
        name: RangeWatch(paths, settings.observer, factors[name])
        for name, paths in _paths(sites).items()
        if name in factors
    }


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Source:
    """What is run to see ranges."""

    program: ExportedProgram
    samples: Samples
    part: str
    progress: Progress | None

    def observe(self, sites: tuple[Site, ...], watches: Mapping[str, Watch], stage: str) -> int:
        """Run every sample through a graph with observers; returns how many there were."""
        prepared = prepare_pt2e(self.program.module(), SiteQuantizer(sites, watches))
        names = [str(name) for name in self.program.graph_signature.user_inputs]
        count = 0
        for sample in self.samples():
            _check_inputs(sample, self.part, count)
            try:
                with torch.no_grad():
                    results = prepared(*(sample[name] for name in names))
            except NotFinite as error:
                raise BuildError(
                    f"Calibration of {self.part}, sample {count + 1}: the input of {error.path} "
                    "holds NaN or infinity, so it has no range. Look at this sample and at the "
                    "weights before this layer."
                ) from error
            _check_results(results, self.part, count)
            for watch in watches.values():
                watch.finish_sample()
            count += 1
            if self.progress is not None:
                self.progress(stage, count)
        if not count:
            raise BuildError(
                f"Calibration of {self.part} got no samples. Give a folder of images or a video "
                "that holds at least one."
            )
        return count


def _check_inputs(sample: Mapping[str, Tensor], part: str, index: int) -> None:
    for name, tensor in sample.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise BuildError(
                f"Calibration of {part}, sample {index + 1}: the input {name} holds NaN or "
                "infinity. Look at this sample."
            )


def _check_results(results: Tensor | Sequence[Tensor], part: str, index: int) -> None:
    """What turns to NaN behind the last observed layer is seen here."""
    for position, tensor in enumerate((results,) if isinstance(results, Tensor) else results):
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise BuildError(
                f"Calibration of {part}, sample {index + 1}: output {position + 1} holds NaN or "
                "infinity. Look at this sample and at the last layers of the part."
            )


def _moving(watches: Mapping[str, Watch]) -> tuple[str, ...]:
    """Layers whose range grew by more than :data:`MOVED` in the last of several samples."""
    found: dict[str, None] = {}
    for watch in watches.values():
        if len(watch.history) > 1 and watch.history[-1] > watch.history[-2] * (1 + MOVED):
            found |= dict.fromkeys(watch.paths)
    return tuple(found)


def _warn(part: str, moving: tuple[str, ...], count: int) -> None:
    if not moving:
        return
    more = f" and {len(moving) - NAMED} more" if len(moving) > NAMED else ""
    warnings.warn(
        f"Calibration of {part}: after {count} samples the ranges of {', '.join(moving[:NAMED])}"
        f"{more} still grow by more than {MOVED:.0%} with the last one. Use more samples, or ones "
        "that show what the bundle will see.",
        CalibrationWarning,
        stacklevel=3,
    )
