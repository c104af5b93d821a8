"""Program and samples -> ranges: stream samples through the graph, keep only what they span."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

from samforge.core.errors import BuildError, SamforgeWarning
from samforge.core.recipe import Quantization
from samforge.transform.quantize.observers import HALF_STEPS
from samforge.transform.quantize.pairs import NotSmoothed, Smoothable, smoothable_pairs
from samforge.transform.quantize.placement import LeftFloat, placement
from samforge.transform.quantize.quantizer import SMALLEST_SCALE, SiteQuantizer, weight_scale
from samforge.transform.quantize.sites import Site, constant
from samforge.transform.quantize.smooth import Smoothing, smoothed, smoothings_from_maxima
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
    largest_seen: Mapping[str, float]
    """Largest magnitude in each observed tensor after smoothing, by node."""
    weight_scale: Mapping[str, Tensor]
    """Scales of each site's weight with its columns smoothed, (output channels,), by the site's
    node. What its rows are divided by in a graph divides them too: :meth:`folded_scale`."""
    smoothings: tuple[Smoothing, ...]
    """Weights that are evened out, in the order of the graph."""
    not_smoothed: tuple[NotSmoothed, ...]
    """Weights in front of quantized operators that are not."""
    samples: int
    """How many samples set the ranges."""
    moving: tuple[str, ...]
    """Layers whose range the last sample widened noticeably."""

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups of sites, in the order of the graph."""
        return tuple(dict.fromkeys(site.group for site in self.sites))

    def columns(self) -> dict[str, Tensor]:
        """Factor of each input channel, by the node of every operator that has some."""
        return _columns(self.smoothings)

    def folded(self, quantized: Collection[str]) -> tuple[Smoothing, ...]:
        """Smoothings that are of use where these sites, by node, are quantized."""
        wanted = set(quantized)
        return tuple(s for s in self.smoothings if wanted & s.pair.readers.keys())

    def folded_scale(self, site: Site, folded: Iterable[Smoothing]) -> Tensor:
        """Scales of a site's weight in a graph that some smoothings are folded into."""
        scale = self.weight_scale[site.node]
        for smoothing in folded:
            if smoothing.pair.weight == site.weight:
                scale = scale / smoothing.factors
        return scale.clamp(min=SMALLEST_SCALE)


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
    pairs, not_smoothed = smoothable_pairs(graph, placed.sites, part, settings)
    watches = _watches(placed.sites, pairs, settings)
    count = source.observe(placed.sites, watches, "ranges")
    maxima = {name: w.maxima for name, w in watches.items() if isinstance(w, ChannelWatch)}
    smoothings = smoothings_from_maxima(graph, pairs, maxima, settings.smooth_alpha)
    ranges = {n: w.range() for n, w in watches.items() if isinstance(w, RangeWatch)}
    seen = {n: w.largest for n, w in watches.items() if isinstance(w, RangeWatch)}
    if settings.observer == "min-max":
        smoothed_maxima = {
            name: float((maxima[name] / smoothing.columns(reader)).max())
            for smoothing in smoothings
            for name, reader in smoothing.pair.inputs.items()
            if name in maxima
        }
        ranges |= smoothed_maxima
        seen |= smoothed_maxima
    elif smoothings:
        second = _second_watches(placed.sites, smoothings, settings)
        behind = tuple(site for site in placed.sites if site.input in second)
        source.observe(behind, second, "smoothed ranges")
        ranges |= {name: watch.range() for name, watch in second.items()}
        seen |= {name: watch.largest for name, watch in second.items()}
        watches |= second
    moving = _moving(watches)
    _warn(part, moving, count)
    columns = _columns(smoothings)
    return Calibrated(
        program=program,
        part=part,
        settings=settings,
        sites=placed.sites,
        left=placed.left,
        products=placed.products,
        input_scale={n: max(r / HALF_STEPS, SMALLEST_SCALE) for n, r in ranges.items()},
        largest_seen=seen,
        weight_scale={
            site.node: weight_scale(
                smoothed(
                    constant(graph, str(site.weight)), columns.get(site.node), site.column_axis
                ),
                site.channel_axis,
            )
            for site in placed.sites
        },
        smoothings=smoothings,
        not_smoothed=not_smoothed,
        samples=count,
        moving=moving,
    )


def _columns(smoothings: Iterable[Smoothing]) -> dict[str, Tensor]:
    return {
        node: smoothing.columns(reader)
        for smoothing in smoothings
        for node, reader in smoothing.pair.readers.items()
    }


def _paths(sites: Iterable[Site]) -> dict[str, tuple[str, ...]]:
    """Module paths of the layers that read each tensor."""
    paths: dict[str, tuple[str, ...]] = {}
    for site in sites:
        paths[site.input] = (*paths.get(site.input, ()), site.path)
    return paths


def _watches(
    sites: tuple[Site, ...], pairs: tuple[Smoothable, ...], settings: Quantization
) -> dict[str, Watch]:
    axes = {name: reader.input_axis for pair in pairs for name, reader in pair.inputs.items()}
    return {
        name: ChannelWatch(own, axes[name]) if name in axes else RangeWatch(own, settings.observer)
        for name, own in _paths(sites).items()
    }


def _second_watches(
    sites: tuple[Site, ...], smoothings: tuple[Smoothing, ...], settings: Quantization
) -> dict[str, RangeWatch]:
    found: dict[str, RangeWatch] = {}
    paths = _paths(sites)
    for smoothing in smoothings:
        for name, reader in smoothing.pair.inputs.items():
            if name in paths:
                columns = smoothing.columns(reader)
                found[name] = RangeWatch(paths[name], settings.observer, columns, reader.input_axis)
    return found


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
