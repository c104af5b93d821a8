"""Wall-clock time by stage, collected by whoever asks for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class StageTime:
    """Time one stage took."""

    stage: str
    """``decode``, ``preprocess``, ``vision``, ``text``, ``detector``, ``post-process``, …"""
    milliseconds: float
    """Wall-clock time, summed over the calls."""
    calls: int
    """How often the stage ran; 0 milliseconds and 0 calls mean that a cache answered."""
    processor: str
    """Where it ran."""


@dataclass(slots=True)
class Timings:
    """Collects the time of each stage in the order of first use."""

    _stages: dict[str, StageTime] = field(default_factory=dict)

    @contextmanager
    def stage(self, stage: str, processor: str = "CPU") -> Iterator[None]:
        """Measure the body as one call of ``stage``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, (time.perf_counter() - start) * 1e3, processor)

    def add(self, stage: str, milliseconds: float, processor: str = "CPU", calls: int = 1) -> None:
        """Add one measurement to ``stage``."""
        before = self._stages.get(stage)
        self._stages[stage] = StageTime(
            stage=stage,
            milliseconds=milliseconds + (before.milliseconds if before else 0.0),
            calls=calls + (before.calls if before else 0),
            processor=processor,
        )

    def stages(self) -> tuple[StageTime, ...]:
        """Every stage measured so far, in the order of first use."""
        return tuple(self._stages.values())

    @property
    def total_ms(self) -> float:
        """Sum over the stages."""
        return sum(stage.milliseconds for stage in self._stages.values())
