"""What a server takes, and how much of it at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from samforge.core.errors import SettingError

_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Bounds of one server: what is beyond them is refused before memory is taken for it.

    Raises:
        SettingError: One is not above zero, or ``seconds`` is above ``most_seconds``, or
            ``request_bytes`` above ``bodies_bytes``.
    """

    request_bytes: int = 64 * _MIB
    """Largest body of a request; base64 counts as it comes."""
    video_bytes: int = 1024 * _MIB
    """Largest body of a request with a video, which is kept on disk."""
    pixels: int = 64_000_000
    """Largest picture; 178 megapixels is what samforge reads at all."""
    frames: int = 100_000
    """Most frames of a video."""
    videos: int = 4
    """Most videos that are followed at the same time."""
    phrases: int = 64
    """Most phrases of a request."""
    boxes: int = 64
    """Most boxes of a request, and most objects that clicks show."""
    points: int = 256
    """Most points of a request."""
    detections: int = 1000
    """Most detections of an answer: those with the best scores."""
    seconds: float = 30.0
    """Time that a request has, where it names none."""
    most_seconds: float = 300.0
    """Most time that a request may ask for."""
    upload_seconds: float = 60.0
    """Time that a body has to arrive."""
    video_upload_seconds: float = 600.0
    """The same of a video."""
    bodies_bytes: int = 512 * _MIB
    """Most bytes of bodies that are in memory: arriving, or of requests that have not ended."""
    waiting: int = 256
    """Most requests that are accepted and not yet answered."""
    waiting_of_client: int = 128
    """The same of one client."""
    waiting_bytes: int = 512 * _MIB
    """Most bytes of pictures, and of masks that clicks correct, among them."""
    cache_bytes: int = 2048 * _MIB
    """Most bytes of encoded pictures that are kept."""
    kept_bytes: int = 256 * _MIB
    """Most bytes of picture files that are kept under an id."""

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and math.isfinite(value) and value > 0):
                raise SettingError(f"{one.name} is {value!r:.40}. Give a number above 0.")
        if self.request_bytes > self.bodies_bytes:
            raise SettingError(
                f"request_bytes is {self.request_bytes:,}, above bodies_bytes, "
                f"{self.bodies_bytes:,}, which holds all of them. Give at most as much."
            )
        if self.seconds > self.most_seconds:
            raise SettingError(
                f"seconds is {self.seconds:g}, above most_seconds, {self.most_seconds:g}. "
                "Give at most as much."
            )
