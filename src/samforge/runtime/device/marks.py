"""Time of stages on a device: events between kernels, so that nothing waits for them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch

from samforge.core.timing import Timings


@dataclass(kw_only=True, slots=True)
class Marks:
    """Ends of the stages of one call; nothing is recorded where nobody asked."""

    timings: Timings | None
    """Takes the stages."""
    device: torch.device
    """Where they run."""
    processor: str
    """The same in words."""
    _ends: list[tuple[str, torch.cuda.Event | float]] = field(default_factory=list)

    def begin(self) -> None:
        """Start the first stage."""
        if self.timings is not None:
            self._ends = [("", self._now())]

    def begin_if_idle(self) -> None:
        """Start the first stage, if none has begun."""
        if not self._ends:
            self.begin()

    def end(self, stage: str) -> None:
        """End a stage, and start the next."""
        if self.timings is not None:
            self._ends.append((stage, self._now()))

    def add(self) -> None:
        """Add what is known by now to the timings: once the device is done with the stages."""
        if self.timings is None:
            return
        for (_, start), (stage, end) in zip(self._ends, self._ends[1:], strict=False):
            self.timings.add(stage, _milliseconds(start, end), self.processor)
        self._ends = []

    def _now(self) -> torch.cuda.Event | float:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


def _milliseconds(start: torch.cuda.Event | float, end: torch.cuda.Event | float) -> float:
    if isinstance(start, float) or isinstance(end, float):
        return (float(end) - float(start)) * 1e3  # type: ignore[arg-type]
    end.synchronize()
    return float(start.elapsed_time(end))
