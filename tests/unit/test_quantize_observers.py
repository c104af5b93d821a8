"""Ranges that the observers choose, on distributions whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from samforge.core.recipe import OBSERVERS
from samforge.transform.quantize.observers import (
    BINS,
    EntropyObserver,
    MseObserver,
    PercentileObserver,
    observer_from_name,
    quick_range,
    range_from_observer,
)


def _range(name: str, *tensors: Tensor) -> float:
    observer = observer_from_name(name)
    for tensor in tensors:
        observer(tensor)
    return range_from_observer(observer)


def _normal(count: int = 20_000, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def test_min_max_takes_the_largest_magnitude_of_either_sign() -> None:
    observer = observer_from_name("min-max")
    observer(torch.tensor([-3.0, 1.0]))
    observer(torch.tensor([2.0, 2.5]))
    scale, zero = observer.calculate_qparams()
    assert float(scale) == pytest.approx(3.0 / 127.5, rel=1e-6)
    assert int(zero) == 0
    assert range_from_observer(observer) == pytest.approx(3.0, rel=1e-6)


def test_moving_average_follows_by_a_tenth() -> None:
    first, second = torch.tensor([-1.0, 1.0]), torch.tensor([-1.0, 2.0])
    assert _range("moving-average", first, second) == pytest.approx(1.1, rel=1e-6)


@pytest.mark.parametrize("name", OBSERVERS)
def test_every_observer_keeps_a_uniform_range(name: str) -> None:
    assert _range(name, torch.linspace(-1, 1, 20_001)) == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize("name", OBSERVERS)
def test_every_observer_survives_zeros(name: str) -> None:
    observer = observer_from_name(name)
    observer(torch.zeros(8, 4))
    scale, zero = observer.calculate_qparams()
    assert math.isfinite(float(scale))
    assert float(scale) > 0
    assert int(zero) == 0


def test_percentile_cuts_one_in_ten_thousand() -> None:
    # 99,990 values of 1 and ten of 100: bins are 100 / 2048 wide, 1 lies in bin 20.
    values = torch.cat([torch.ones(99_990), torch.full((10,), 100.0)])
    assert _range("percentile", values) == pytest.approx(21 * 100 / BINS, rel=1e-6)
    # Eleven of them are more than that.
    values = torch.cat([torch.ones(99_989), torch.full((11,), -100.0)])
    assert _range("percentile", values) == pytest.approx(100.0, rel=1e-6)


def test_histogram_doubles_without_losing_a_count() -> None:
    observer = PercentileObserver()
    observer(torch.linspace(0, 1, 1001))
    observer(torch.tensor([-3.0]))
    assert observer.top == 4.0
    assert float(observer.counts.sum()) == 1002
    # All that was below 1 is in the first quarter of the bins still.
    assert float(observer.counts[: BINS // 4 + 1].sum()) == 1001


def test_mse_finds_the_range_that_a_search_over_the_values_finds() -> None:
    values = torch.cat([_normal(), torch.tensor([30.0])])
    tops = np.arange(16, BINS + 1, 16) * 30.0 / BINS
    errors = []
    for top in tops:
        scale = top / 127.5
        rounded = (values.numpy() / scale).round().clip(-128, 127) * scale
        errors.append(float(((rounded - values.numpy()) ** 2).mean()))
    best = tops[int(np.argmin(errors))]
    assert best < 30.0
    assert _range("mse", values) == pytest.approx(best, abs=2 * 16 * 30.0 / BINS)


def test_entropy_equals_the_published_loop() -> None:
    values = torch.cat([_normal(), torch.tensor([20.0])])
    observer = EntropyObserver()
    observer(values)
    counts = observer.counts.numpy().copy()
    counts[0] = counts[1]
    losses = {}
    for end in range(128, BINS + 1, 8):
        wanted = counts[:end].copy()
        wanted[-1] += counts[end:].sum()
        spread = np.zeros(end)
        level = np.arange(end) * 128 // end
        for one in range(128):
            own = slice(int(np.searchsorted(level, one)), int(np.searchsorted(level, one + 1)))
            inside = counts[own] > 0
            if inside.any():
                spread[own] = inside * counts[own].sum() / inside.sum()
        p, q = wanted / wanted.sum(), np.maximum(spread / spread.sum(), 1e-9)
        used = p > 0
        losses[end] = float((p[used] * np.log(p[used] / q[used])).sum())
    best = min(losses, key=lambda end: losses[end])
    assert range_from_observer(observer) == pytest.approx(best * observer.top / BINS)
    assert range_from_observer(observer) < 6.0


def test_outliers_are_clipped_by_those_that_clip() -> None:
    values = torch.cat([_normal(), torch.tensor([100.0])])
    assert _range("min-max", values) == pytest.approx(100.0)
    for name in ("percentile", "entropy"):
        assert _range(name, values) < 10.0
    # Clipping to 10 would cost 90**2 / 20,001 = 0.4 on average, rounding to 100 / 127.5 only 0.05.
    assert _range("mse", values) > 50.0


def test_quick_range_is_the_percentile_where_there_is_a_histogram() -> None:
    observer = MseObserver()
    observer(torch.cat([torch.ones(99_990), torch.full((10,), 100.0)]))
    assert quick_range(observer) == pytest.approx(21 * 100 / BINS, rel=1e-6)
    minmax = observer_from_name("min-max")
    minmax(torch.tensor([-2.0, 1.0]))
    assert quick_range(minmax) == 2.0
