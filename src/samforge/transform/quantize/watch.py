"""Observers as they stand in the graph during calibration: named, and alert to NaN."""

from __future__ import annotations

import torch
from torch import Tensor
from torchao.quantization.pt2e.observer import ObserverBase

from samforge.transform.quantize.observers import (
    observer_from_name,
    quick_range,
    range_from_observer,
)
from samforge.transform.quantize.quantizer import along


class NotFinite(Exception):  # caught where the part and the sample are known
    """An observed tensor holds NaN or infinity."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


class Watch(ObserverBase):  # type: ignore[misc]  # torchao has no types
    """Watches one tensor."""

    def __init__(self, paths: tuple[str, ...]) -> None:
        super().__init__(dtype=torch.int8)
        self.paths = paths
        self.history: list[float] = []

    def forward(self, values: Tensor) -> Tensor:
        """Look at one tensor and pass it on.

        Raises:
            NotFinite: It holds NaN or infinity.
        """
        low, high = torch.aminmax(values.detach())
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            raise NotFinite(self.paths[0])
        self.see(values.detach())
        return values

    def see(self, values: Tensor) -> None:
        """Take in one tensor."""
        raise NotImplementedError

    def now(self) -> float:
        """The range so far, cheap to read."""
        raise NotImplementedError

    def finish_sample(self) -> None:
        """Remember the range after another sample."""
        self.history.append(self.now())

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Nothing is converted from here: the scales go into a graph of their own."""
        raise NotImplementedError


class RangeWatch(Watch):
    """Feeds an observer, with each channel divided by its smoothing factor first."""

    def __init__(
        self,
        paths: tuple[str, ...],
        observer: str,
        factors: Tensor | None = None,
        axis: int = -1,
    ) -> None:
        super().__init__(paths)
        self.observer = observer_from_name(observer)
        self.largest = 0.0
        """Magnitude of all values so far, smoothed."""
        self._factors = factors
        self._axis = axis

    def see(self, values: Tensor) -> None:
        """See :meth:`Watch.see`."""
        if self._factors is not None:
            values = values / along(self._factors, self._axis, values.ndim)
        self.largest = max(self.largest, float(values.abs().max()))
        self.observer(values)

    def now(self) -> float:
        """See :meth:`Watch.now`."""
        return quick_range(self.observer)

    def range(self) -> float:
        """Largest magnitude to represent."""
        return range_from_observer(self.observer)


class ChannelWatch(Watch):
    """Keeps the largest magnitude of each channel, counted along one axis."""

    def __init__(self, paths: tuple[str, ...], axis: int) -> None:
        super().__init__(paths)
        self.maxima = torch.zeros(0)
        self._axis = axis

    def see(self, values: Tensor) -> None:
        """See :meth:`Watch.see`."""
        found = values.abs().amax([i for i in range(values.ndim) if i != self._axis % values.ndim])
        self.maxima = torch.maximum(self.maxima, found) if self.maxima.numel() else found

    def now(self) -> float:
        """See :meth:`Watch.now`."""
        return float(self.maxima.max())
