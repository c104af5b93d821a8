"""How an activation's range is chosen from what calibration saw.

torchao has min-max, moving average and histogram. Percentile, entropy and mean squared error are
here, over one histogram of magnitudes: activations are quantized symmetrically.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torchao.quantization.pt2e.observer import (
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    ObserverBase,
)

QMIN, QMAX = -128, 127
HALF_STEPS = 127.5
"""An int8 activation spans 255 steps: a range of ``±r`` has the scale ``r / 127.5``."""
BINS = 2048
PERCENTILE = 99.99
"""Of the magnitudes, what the percentile observer covers."""
LEVELS = 128
"""Magnitudes that int8 tells apart."""
AVERAGING = 0.1
"""Weight of the newest sample in the moving average; torchao's 0.01 wants hundreds of samples."""
FLOOR = 1e-9
"""Smallest probability in a divergence."""
CHUNK = 2**22
"""Values counted at once: in float32 a count ends at 2**24."""


class MagnitudeHistogram(ObserverBase):  # type: ignore[misc]  # torchao has no types
    """Counts of magnitudes in equal bins from 0; the range doubles when it is too small.

    Doubling merges pairs of bins, so no count is ever spread or guessed.
    """

    def __init__(self) -> None:
        super().__init__(dtype=torch.int8)
        self.counts = torch.zeros(BINS, dtype=torch.float64)
        self.top = 0.0

    def forward(self, values: Tensor) -> Tensor:
        """Count one tensor."""
        magnitudes = values.detach().abs().flatten()
        largest = float(magnitudes.max())
        if self.top == 0.0:
            self.top = largest or 1.0
        while largest > self.top:
            merged = self.counts.view(-1, 2).sum(1)
            self.counts = torch.cat([merged, torch.zeros_like(merged)])
            self.top *= 2
        for chunk in torch.split(magnitudes, CHUNK):
            self.counts += torch.histc(chunk.float(), BINS, 0.0, self.top).double()
        return values

    def range(self) -> float:
        """Largest magnitude to represent."""
        raise NotImplementedError

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point, as torchao's observers give them."""
        return torch.tensor([self.range() / HALF_STEPS]), torch.zeros(1, dtype=torch.int64)

    def percentile(self, percent: float) -> float:
        """Upper edge of the bin in which a percentile of all magnitudes lies."""
        seen = self.counts.cumsum(0)
        index = int(torch.searchsorted(seen, seen[-1] * percent / 100))
        return (min(index, BINS - 1) + 1) * self.top / BINS


class PercentileObserver(MagnitudeHistogram):
    """Covers 99.99 % of the magnitudes and clips the rest."""

    def range(self) -> float:
        """See :meth:`MagnitudeHistogram.range`."""
        return self.percentile(PERCENTILE)


class MseObserver(MagnitudeHistogram):
    """Takes the range with the smallest mean squared error after rounding and clipping."""

    def range(self) -> float:
        """Try every sixteenth bin as the end of the range."""
        ends = torch.arange(16, BINS + 1, 16, dtype=torch.float64) * self.top / BINS
        centres = (torch.arange(BINS, dtype=torch.float64) + 0.5) * self.top / BINS
        scales = (ends / HALF_STEPS)[:, None]
        rounded = (centres / scales).round().clamp(max=QMAX) * scales  # [candidates, bins]
        errors = ((rounded - centres).square() * self.counts).sum(1)
        return float(ends[errors.argmin()])


class EntropyObserver(MagnitudeHistogram):
    """Takes the range that keeps the distribution most alike, by Kullback-Leibler divergence.

    Source: S. Migacz, 8-bit inference with TensorRT, GTC 2017, slides 31 to 37.
    """

    def range(self) -> float:
        """Try every eighth bin as the end of the range."""
        counts = self.counts.clone()
        # Exact zeros say nothing about the range, and there are many behind a ReLU.
        counts[0] = counts[1]
        ends = range(LEVELS, BINS + 1, 8)
        losses = [_divergence(counts, end) for end in ends]
        best = min(losses)
        # The widest of equals: clipping what costs nothing to keep would gain nothing.
        end = max(end for end, loss in zip(ends, losses, strict=True) if loss <= best + 1e-12)
        return end * self.top / BINS


def _divergence(counts: Tensor, end: int) -> float:
    """Divergence of the clipped distribution from what 128 levels leave of it."""
    inside = counts[:end]
    wanted = inside.clone()
    wanted[-1] += counts[end:].sum()
    level = torch.arange(end) * LEVELS // end
    filled = (inside > 0).double()
    sums = torch.zeros(LEVELS, dtype=torch.float64).index_add_(0, level, inside)
    sizes = torch.zeros(LEVELS, dtype=torch.float64).index_add_(0, level, filled)
    spread = (sums / sizes.clamp(min=1))[level] * filled
    if not spread.sum():
        return float("inf")
    # Without a floor one outlier, clipped into an empty bin, would be infinitely bad.
    wanted, spread = wanted / wanted.sum(), (spread / spread.sum()).clamp(min=FLOOR)
    used = wanted > 0
    return float((wanted[used] * (wanted[used] / spread[used]).log()).sum())


def observer_from_name(name: str) -> ObserverBase:
    """Make an observer for symmetric int8 activations, by its name in ``OBSERVERS``."""
    own = {"percentile": PercentileObserver, "entropy": EntropyObserver, "mse": MseObserver}
    if name in own:
        return own[name]()
    symmetric: dict[str, Any] = {
        "dtype": torch.int8,
        "qscheme": torch.per_tensor_symmetric,
        "quant_min": QMIN,
        "quant_max": QMAX,
    }
    if name == "moving-average":
        return MovingAverageMinMaxObserver(averaging_constant=AVERAGING, **symmetric)
    return {"min-max": MinMaxObserver, "histogram": HistogramObserver}[name](**symmetric)


def range_from_observer(observer: ObserverBase) -> float:
    """Largest magnitude that the observer's scale represents."""
    return float(observer.calculate_qparams()[0]) * HALF_STEPS


def quick_range(observer: ObserverBase) -> float:
    """A range that is cheap to read after every sample, to see whether it still moves."""
    if isinstance(observer, MagnitudeHistogram):
        return observer.percentile(PERCENTILE)
    low, high = cast(Tensor, observer.min_val), cast(Tensor, observer.max_val)
    return float(torch.maximum(low.abs(), high.abs()))
