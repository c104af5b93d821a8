"""How long things take: a fair timing loop, and the figures of its samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

import numpy as np

from samforge.core.errors import SettingError
from samforge.core.timing import Timings

Clock: TypeAlias = Callable[[], float]
"""Gives seconds from any start. One that first waits for the device (its stream, its events) times
sessions that return before they are done; sessions that take and give numpy arrays need none."""

Subject: TypeAlias = Callable[[Timings], None]
"""Does once what is measured, and says how long its stages took."""

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True, kw_only=True, slots=True)
class Latency:
    """Figures of one set of samples, milliseconds."""

    samples: int
    """How many."""
    mean_ms: float
    """Their mean."""
    median_ms: float
    """Half of them took no longer."""
    p95_ms: float
    """95 % of them took no longer."""
    p99_ms: float
    """99 % of them took no longer; with fewer than a hundred samples, nearly the longest."""
    min_ms: float
    """The shortest."""
    max_ms: float
    """The longest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageLatency:
    """Time of one stage."""

    stage: str
    """``preprocess``, ``vision``, …"""
    processor: str
    """Where it ran."""
    latency: Latency
    """Of one call."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """How long to measure.

    Raises:
        SettingError: A number is outside what is allowed.
    """

    warm_up: int = 3
    """Rounds before the first one that counts."""
    iterations: int | None = 30
    """Rounds that count; None leaves it to the seconds."""
    seconds: float | None = None
    """Time after which no further round begins; None leaves it to the iterations."""

    def __post_init__(self) -> None:
        if self.warm_up < 0:
            raise SettingError(f"warm_up is {self.warm_up}. Give at least 0.")
        if self.iterations is not None and self.iterations < 1:
            raise SettingError(f"iterations is {self.iterations}. Give at least 1.")
        if self.seconds is not None and not 0 < self.seconds < float("inf"):
            raise SettingError(f"seconds is {self.seconds}. Give a number above 0.")
        if self.iterations is None and self.seconds is None:
            raise SettingError("There is no end to the measurement. Give iterations or seconds.")

    def is_spent(self, rounds: int, seconds: float) -> bool:
        """Whether to stop after so many rounds and seconds; never before the first round."""
        if rounds == 0:
            return False
        over = self.seconds is not None and seconds >= self.seconds
        return over or (self.iterations is not None and rounds >= self.iterations)


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """What was measured of one subject, round by round."""

    total_ms: list[float] = field(default_factory=list)
    """The whole call, on the loop's clock."""
    stages_ms: dict[str, list[float]] = field(default_factory=dict)
    """Each of its stages."""
    processors: dict[str, str] = field(default_factory=dict)
    """Where each stage ran."""

    def add(self, total_ms: float, timings: Timings) -> None:
        """Add one call."""
        self.total_ms.append(total_ms)
        for stage in timings.stages():
            self.stages_ms.setdefault(stage.stage, []).append(stage.milliseconds)
            self.processors[stage.stage] = stage.processor

    def stages(self) -> tuple[StageLatency, ...]:
        """Figures of every stage, in the order of first use."""
        return tuple(
            StageLatency(
                stage=stage,
                processor=self.processors[stage],
                latency=latency_from_samples(values),
            )
            for stage, values in self.stages_ms.items()
        )


def latency_from_samples(milliseconds: Iterable[float]) -> Latency:
    """Compute the figures; percentiles are interpolated linearly between samples, as in numpy.

    Raises:
        SettingError: There is no sample.
    """
    values = np.fromiter(milliseconds, np.float64)
    if values.size == 0:
        raise SettingError("There are no samples. Measure at least once.")
    median, p95, p99 = np.percentile(values, (50, 95, 99)).tolist()
    return Latency(
        samples=values.size,
        mean_ms=float(values.mean()),
        median_ms=median,
        p95_ms=p95,
        p99_ms=p99,
        min_ms=float(values.min()),
        max_ms=float(values.max()),
    )


def measure_in_turn(
    subjects: Mapping[Name, Subject],
    budget: Budget,
    *,
    clock: Clock = time.perf_counter,
    done: Callable[[], None] = lambda: None,
) -> dict[Name, Samples]:
    """Measure several subjects round by round, each once a round.

    What slows a machine down for a while (heat, other programs) then meets all of them alike, so
    that their ratios are fair. Every other round goes backwards, so that none is always the one
    that follows another.

    Args:
        subjects: What to measure, by name.
        budget: How long.
        clock: Reads seconds.
        done: Called after each round, warm-up included.
    """
    samples: dict[Name, Samples] = {name: Samples() for name in subjects}
    for _ in range(budget.warm_up):
        for run in subjects.values():
            run(Timings())
        done()
    names = list(subjects)
    start, rounds = clock(), 0
    while not budget.is_spent(rounds, clock() - start):
        for name in names if rounds % 2 == 0 else reversed(names):
            timings = Timings()
            begin = clock()
            subjects[name](timings)
            samples[name].add((clock() - begin) * 1e3, timings)
        rounds += 1
        done()
    return samples
