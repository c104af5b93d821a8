"""A picture on its way to its encoding, and who waits for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from samforge.core.images import RgbImage
from samforge.serving.jobs import Picture, Ticket


class Stage(Enum):
    """How far a picture has come."""

    WAITS = auto()
    DECODES = auto()
    DECODED = auto()
    ENCODES = auto()
    DONE = auto()


@dataclass(kw_only=True, slots=True, eq=False)
class Encoding:
    """One picture for all who ask about it at the same time."""

    picture: Picture
    tickets: list[Ticket] = field(default_factory=list)
    """Jobs that wait for it."""
    stage: Stage = Stage.WAITS
    lines: set[str] = field(default_factory=set)
    """Clients in whose lines it stands: those who wait for it, while it waits for a stage."""
    rgb: RgbImage | None = None
    """The decoded picture, until it is encoded."""
    decode_ms: float = 0.0

    def pixels(self) -> RgbImage:
        """The decoded picture: whoever encodes a batch leaves none of it out."""
        assert self.rgb is not None  # noqa: S101  # it was decoded before it stood in line
        return self.rgb
