"""What a set of parts can do: the one place that says which parts belong together."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

VISION = "vision"
"""Part that encodes images for a detector."""
TEXT_ENCODER = "text"
"""Part that encodes phrases."""
DETECTOR = "detector"
"""Part that finds what phrases name."""
DETECTOR_WITH_BOXES = "detector_boxes"
"""Part that finds what is like exemplar boxes."""
BACKBONE = "backbone"
"""Part that encodes images and does nothing else."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Capability:
    """Something that a bundle can do when it has some parts."""

    name: str
    """In words of a user."""
    parts: tuple[str, ...]
    """All that it needs, in the order in which they run."""
    detector: str
    """The one of them whose results are read as detections."""

    def missing(self, parts: Collection[str]) -> tuple[str, ...]:
        """The parts that it needs and that are not among these."""
        return tuple(part for part in self.parts if part not in parts)

    def among(self, parts: Collection[str]) -> bool:
        """Whether these parts are enough for it."""
        return not self.missing(parts)


TEXT = Capability(
    name="segment by phrases", parts=(VISION, TEXT_ENCODER, DETECTOR), detector=DETECTOR
)
BOXES = Capability(
    name="segment by exemplar boxes",
    parts=(*TEXT.parts, DETECTOR_WITH_BOXES),
    detector=DETECTOR_WITH_BOXES,
)
CAPABILITIES = (TEXT, BOXES)
"""Every capability; each needs what those before it need, and more."""
DETECTORS = tuple(one.detector for one in CAPABILITIES)
"""Parts whose results are read as detections."""
IMAGE_ENCODERS = (BACKBONE, VISION)
"""Parts that make features of an image; whoever wants features takes the first that there is."""
