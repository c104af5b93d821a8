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
POINT_DECODER = "point_decoder"
"""Part that turns clicks, box corners and earlier masks into masks of objects."""
MASK_PROMPT = "mask_prompt"
"""Part that makes the pointer of an object whose mask is given."""
MEMORY_ATTENTION = "memory_attention"
"""Part that lets a frame see what objects remember."""
TRACKING_DECODER = "tracking_decoder"
"""Part that finds followed objects in a frame."""
MEMORY_ENCODER = "memory_encoder"
"""Part that makes memories of objects that were clicked or given as masks."""
MEMORY_ENCODER_TEXT = "memory_encoder_text"
"""The same of objects that a phrase found: its masks are enlarged in one step."""


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
POINTS = Capability(
    name="segment by clicks", parts=(*TEXT.parts, POINT_DECODER), detector=POINT_DECODER
)
TRACK = Capability(
    name="follow objects through videos",
    parts=(
        *POINTS.parts,
        MASK_PROMPT,
        MEMORY_ATTENTION,
        TRACKING_DECODER,
        MEMORY_ENCODER,
        MEMORY_ENCODER_TEXT,
    ),
    detector=TRACKING_DECODER,
)
CAPABILITIES = (TEXT, BOXES, POINTS, TRACK)
"""Every capability; all need what the first needs, and more."""
TRACKER_PARTS = tuple(part for part in TRACK.parts if part not in TEXT.parts)
"""Parts of SAM 3's tracker; with them ``vision`` gives the tracker's maps too."""
DETECTORS = tuple(one.detector for one in (TEXT, BOXES))
"""Parts whose results are read as detections."""
IMAGE_ENCODERS = (BACKBONE, VISION)
"""Parts that make features of an image; whoever wants features takes the first that there is."""
