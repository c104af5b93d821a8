"""Parts of a tracker around others: whoever watches or changes a call overrides it alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from samforge.core.capabilities import DETECTOR, VISION
from samforge.core.masks import Masks
from samforge.core.timing import Timings
from samforge.runtime.encoded import EncodedImage
from samforge.runtime.tracking.cells import Cells
from samforge.runtime.tracking.parts import Array, FoundInFrame, TrackerFacts, TrackerParts
from samforge.runtime.tracking.state import Floats

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

    def detect(
        self, encoded: EncodedImage, phrases: tuple[str, ...], thresholds: Sequence[float]
    ) -> FoundInFrame:
        """Find what all phrases name in a frame."""
        return self._parts.detect(encoded, phrases, thresholds)

    def run(self, part: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run a part."""
        return self._parts.run(part, inputs)

    def to_host(self, array: Any) -> Array:
        """Bring an output to the host."""
        return self._parts.to_host(array)

    def draw(self, logits: Floats, cells: Cells, size_hw: tuple[int, int]) -> Masks:
        """Bring masks to the frame's size."""
        return self._parts.draw(logits, cells, size_hw)

    def give(self, logits: Floats, size_hw: tuple[int, int]) -> tuple[Any, Floats]:
        """Take masks of detections as masks that are given to the tracker."""
        return self._parts.give(logits, size_hw)

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
    """Takes the time of what is asked; ``timings`` may be another for every frame."""

    def __init__(self, parts: TrackerParts, processor: str) -> None:
        """Watch parts.

        Args:
            parts: What runs the model.
            processor: Where, in words.
        """
        super().__init__(parts)
        self._processor = processor
        self.timings = Timings()

    def encode(self, image: Any) -> EncodedImage:
        """Run the vision part on one frame."""
        with self.timings.stage(VISION, self._processor):
            return super().encode(image)

    def detect(
        self, encoded: EncodedImage, phrases: tuple[str, ...], thresholds: Sequence[float]
    ) -> FoundInFrame:
        """Find what all phrases name in a frame."""
        with self.timings.stage(DETECTOR, self._processor):
            return super().detect(encoded, phrases, thresholds)

    def run(self, part: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run a part."""
        with self.timings.stage(TRACKER, self._processor):
            return super().run(part, inputs)

    def to_host(self, array: Any) -> Array:
        """Bring an output to the host: on a GPU, where its work is waited for."""
        with self.timings.stage(TRACKER, self._processor):
            return super().to_host(array)

    def draw(self, logits: Floats, cells: Cells, size_hw: tuple[int, int]) -> Masks:
        """Bring masks to the frame's size; a GPU ends what it has begun of the next frame first."""
        with self.timings.stage(TRACKER, self._processor):
            return super().draw(logits, cells, size_hw)

    def give(self, logits: Floats, size_hw: tuple[int, int]) -> tuple[Any, Floats]:
        """Take masks of detections as masks that are given to the tracker."""
        with self.timings.stage(TRACKER, self._processor):
            return super().give(logits, size_hw)
