"""Latencies: worked figures, and a loop on a clock that moves only when it is told to."""

from __future__ import annotations

import pytest

from samforge.core.errors import SettingError
from samforge.core.timing import Timings
from samforge.measure.latency import Budget, latency_from_samples, measure_in_turn


def test_worked_figures() -> None:
    latency = latency_from_samples(range(101))
    assert (latency.samples, latency.mean_ms, latency.median_ms) == (101, 50, 50)
    assert (latency.p95_ms, latency.p99_ms) == pytest.approx((95, 99))
    assert (latency.min_ms, latency.max_ms) == (0, 100)
    few = latency_from_samples([4.0, 1.0, 2.0])
    # Linear between samples: p95 lies at 0.95 * 2 = 1.9 of the sorted 1, 2, 4.
    assert (few.median_ms, few.p95_ms, few.mean_ms) == pytest.approx((2, 3.8, 7 / 3))
    one = latency_from_samples([7.0])
    assert {one.mean_ms, one.median_ms, one.p95_ms, one.p99_ms, one.min_ms, one.max_ms} == {7}
    with pytest.raises(SettingError, match=r"There are no samples. Measure at least once\."):
        latency_from_samples([])


class FakeTime:
    """A clock, and subjects that take as long as they say."""

    def __init__(self) -> None:
        self.now = 100.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def subject(self, name: str, *seconds: float):  # type: ignore[no-untyped-def]
        """Takes these times in turn, the last one ever after."""
        left = list(seconds)

        def run(timings: Timings) -> None:
            self.calls.append(name)
            took = left.pop(0) if len(left) > 1 else left[0]
            self.now += took
            timings.add("work", took * 1e3, "GPU")
            timings.add(f"only {name}", 1.0)

        return run


def test_rounds_are_interleaved_and_alternate() -> None:
    clock = FakeTime()
    rounds = 0

    def done() -> None:
        nonlocal rounds
        rounds += 1

    subjects = {"a": clock.subject("a", 9, 0.25), "b": clock.subject("b", 9, 0.5)}
    samples = measure_in_turn(subjects, Budget(warm_up=1, iterations=3), clock=clock, done=done)
    assert clock.calls == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert rounds == 4
    assert samples["a"].total_ms == [250, 250, 250]
    assert samples["b"].total_ms == [500, 500, 500], "the slow first call was the warm-up"
    assert samples["b"].stages_ms == {"work": [500] * 3, "only b": [1] * 3}
    assert samples["b"].processors == {"work": "GPU", "only b": "CPU"}


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (Budget(warm_up=0, iterations=None, seconds=1.0), 4),  # the fourth round ends at 1.0
        (Budget(warm_up=0, iterations=2, seconds=1.0), 2),
        (Budget(warm_up=2, iterations=100, seconds=0.6), 3),  # warm-up does not count
        (Budget(warm_up=0, iterations=None, seconds=0.001), 1),  # one round at least
    ],
)
def test_a_budget_ends_the_loop(budget: Budget, expected: int) -> None:
    clock = FakeTime()
    samples = measure_in_turn({"a": clock.subject("a", 0.25)}, budget, clock=clock)
    assert len(samples["a"].total_ms) == expected


def test_real_time_passes() -> None:
    def busy(timings: Timings) -> None:
        with timings.stage("count"):
            sum(range(20_000))

    samples = measure_in_turn({"busy": busy}, Budget(warm_up=1, iterations=5))["busy"]
    assert all(
        0 < stage <= total
        for stage, total in zip(samples.stages_ms["count"], samples.total_ms, strict=True)
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"warm_up": -1}, "warm_up is -1. Give at least 0."),
        ({"iterations": 0}, "iterations is 0. Give at least 1."),
        ({"seconds": 0.0}, "seconds is 0.0. Give a number above 0."),
        ({"seconds": float("nan")}, "seconds is nan. Give a number above 0."),
        ({"iterations": None}, "There is no end to the measurement. Give iterations or seconds."),
    ],
)
def test_budgets_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError) as caught:
        Budget(**wrong)  # type: ignore[arg-type]
    assert str(caught.value) == message
