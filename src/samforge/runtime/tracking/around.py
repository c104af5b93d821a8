"""Parts of a tracker around others: whoever watches or changes a call overrides it alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from samforge.core.capabilities import DETECTOR, VISION
from samforge.core.masks import Masks
from samforge.core.timing import Timings
from samforge.runtime.encoded import EncodedImage
from samforge.runtime.pending import Pending
from samforge.runtime.tracking.parts import Array, FoundInFrame, TrackerFacts, TrackerParts
from samforge.runtime.tracking.stacks import MaskStack

Value = TypeVar("Value")
TRACKER = "tracker"
"""Stage of all parts of the tracker together, with what comes to the host."""


class AroundParts:
    """:class:`TrackerParts` over others, each call passed on."""

    def __init__(self, parts: TrackerParts) -> None:
        """Stand around parts."""
        self._parts = parts

    @property
    def facts(self) -> TrackerFacts:
        """Sizes, limits, and which bundle this is."""
        return self._parts.facts

    def encode(self, image: Any) -> EncodedImage:
        """Run the vision part on one frame."""
        return self._parts.encode(image)

    def begin_detect(
        self, encoded: EncodedImage, phrases: tuple[str, ...], thresholds: Sequence[float]
    ) -> Pending[FoundInFrame]:
        """Begin to find what all phrases name in a frame."""
        return self._parts.begin_detect(encoded, phrases, thresholds)

    def run(self, part: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run a part."""
        return self._parts.run(part, inputs)

    def to_host(self, array: Any) -> Array:
        """Bring an output to the host."""
        return self._parts.to_host(array)

    def begin_to_host(self, arrays: Mapping[str, Any]) -> Pending[dict[str, Array]]:
        """Begin to bring outputs to the host."""
        return self._parts.begin_to_host(arrays)

    def masks(self, logits: Any) -> MaskStack:
        """Masks in an output."""
        return self._parts.masks(logits)

    def begin_draw(self, masks: MaskStack, size_hw: tuple[int, int]) -> Pending[Masks]:
        """Begin to draw masks at the frame's size."""
        return self._parts.begin_draw(masks, size_hw)

    def give(self, masks: MaskStack, size_hw: tuple[int, int]) -> tuple[Any, MaskStack]:
        """Take masks of detections as masks that are given to the tracker."""
        return self._parts.give(masks, size_hw)

    def keep(self, memory: Any) -> list[Any]:
        """Split memories into those of single objects."""
        return self._parts.keep(memory)

    def recall(self, kept: Sequence[Sequence[Any]]) -> Any:
        """Join memories for one call."""
        return self._parts.recall(kept)

    def saved(self, kept: Any) -> Array:
        """One kept memory as an array."""
        return self._parts.saved(kept)

    def restored(self, array: Array) -> Any:
        """The kept memory that was saved."""
        return self._parts.restored(array)


class TimedParts(AroundParts):
    """Takes the time of what is asked; ``timings`` may be another for every frame.

    What was begun counts, once it is asked for, with the frame that asks: the time that it took to
    begin it and that of waiting for it.
    """

    def __init__(self, parts: TrackerParts, processor: str) -> None:
        """Watch parts.

        Args:
            parts: What runs the model.
            processor: Where, in words.
        """
        super().__init__(parts)
        self._processor = processor
        self.timings = Timings()

    def _later(self, stage: str, begin: Callable[[], Pending[Value]]) -> Pending[Value]:
        start = time.perf_counter()
        pending = begin()
        spent = time.perf_counter() - start

        def finish() -> Value:
            waiting = time.perf_counter()
            try:
                return pending.result()
            finally:
                whole = spent + time.perf_counter() - waiting
                self.timings.add(stage, 1e3 * whole, self._processor)

        return Pending(finish)

    def encode(self, image: Any) -> EncodedImage:
        """Run the vision part on one frame."""
        with self.timings.stage(VISION, self._processor):
            return super().encode(image)

    def begin_detect(
        self, encoded: EncodedImage, phrases: tuple[str, ...], thresholds: Sequence[float]
    ) -> Pending[FoundInFrame]:
        """Begin to find what all phrases name in a frame."""
        return self._later(
            DETECTOR, lambda: super(TimedParts, self).begin_detect(encoded, phrases, thresholds)
        )

    def run(self, part: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run a part."""
        with self.timings.stage(TRACKER, self._processor):
            return super().run(part, inputs)

    def to_host(self, array: Any) -> Array:
        """Bring an output to the host: on a GPU, where its work is waited for."""
        with self.timings.stage(TRACKER, self._processor):
            return super().to_host(array)

    def begin_to_host(self, arrays: Mapping[str, Any]) -> Pending[dict[str, Array]]:
        """Begin to bring outputs to the host."""
        return self._later(TRACKER, lambda: super(TimedParts, self).begin_to_host(arrays))

    def begin_draw(self, masks: MaskStack, size_hw: tuple[int, int]) -> Pending[Masks]:
        """Begin to draw masks at the frame's size."""
        return self._later(TRACKER, lambda: super(TimedParts, self).begin_draw(masks, size_hw))

    def give(self, masks: MaskStack, size_hw: tuple[int, int]) -> tuple[Any, MaskStack]:
        """Take masks of detections as masks that are given to the tracker."""
        with self.timings.stage(TRACKER, self._processor):
            return super().give(masks, size_hw)
