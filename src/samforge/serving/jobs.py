"""What clients ask, and what they wait with."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, TypeAlias

import numpy as np

from samforge.core.errors import DeadlineExceeded
from samforge.core.images import RgbImage
from samforge.runtime import EncodedImage, Question, Segmenter

Work: TypeAlias = Callable[[Segmenter, EncodedImage | None], Any]
"""Something to do on a segmenter, with a picture where there is one."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Picture:
    """A picture as it came."""

    key: str
    """Hash of its content: who sends the same picture asks for the same encoding."""
    data: bytes | RgbImage
    """The file, or uint8 (H, W, 3)."""

    @classmethod
    def of(cls, data: bytes | RgbImage) -> Picture:
        """Hash a picture.

        Args:
            data: A file, or uint8 (H, W, 3).
        """
        if isinstance(data, bytes):
            return cls(key=hashlib.sha256(data).hexdigest(), data=data)
        data = np.ascontiguousarray(data)
        digest = hashlib.sha256(f"rgb {data.shape} ".encode())
        digest.update(data.tobytes())
        return cls(key=digest.hexdigest(), data=data)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes while it waits."""
        return len(self.data) if isinstance(self.data, bytes) else int(self.data.nbytes)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Job:
    """One thing that a client asks: a question about a picture, or work of another kind."""

    client: str
    """Whose turn it takes."""
    seconds: float
    """Time that it has from now on."""
    picture: Picture | None = None
    """What it is about; None for work that brings its own."""
    question: Question | None = None
    """Phrases: they go through the detector with those of other jobs."""
    work: Work | None = None
    """What to do in place of a question: boxes, clicks, a frame of a video."""
    worker: int | None = None
    """Who has to do it; None for whoever is free."""
    masks_bytes: int = 0
    """What its work holds beside the picture."""
    began: float = field(default_factory=time.monotonic)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes while it waits."""
        return self.masks_bytes + (0 if self.picture is None else self.picture.nbytes)

    @property
    def deadline(self) -> float:
        """When it is no longer wanted, as ``time.monotonic`` counts."""
        return self.began + self.seconds


@dataclass(slots=True)
class Spent:
    """Where the time of one job went, milliseconds."""

    decode: float = 0.0
    encode: float = 0.0
    detect: float = 0.0
    total: float = 0.0
    """From its acceptance to its answer."""
    known: bool = True
    """Whether the picture's encoding was there."""

    @property
    def queue(self) -> float:
        """What it waited for others."""
        return max(0.0, self.total - self.decode - self.encode - self.detect)


@dataclass(slots=True, eq=False)
class Ticket:
    """A job that was accepted."""

    job: Job
    future: Future[Any] = field(default_factory=Future)
    """The answer: Detections of a question, else what the work gives. Cancel it to leave."""
    accepted: float = field(default_factory=time.monotonic)
    spent: Spent = field(default_factory=Spent)
    encoded: EncodedImage | None = None
    """Its picture, once it is there."""
    _lock: Lock = field(default_factory=Lock)
    _settled: bool = False

    def is_live(self) -> bool:
        """Whether somebody still wants it; one that is late is told so."""
        if self.future.done():
            return False
        if time.monotonic() < self.job.deadline:
            return True
        self.fail(
            DeadlineExceeded(
                f"The request was given {self.job.seconds:.2g} s, and they have passed. Ask again, "
                "or give it more time."
            )
        )
        return False

    def answer(self, result: Any) -> None:
        """Give the answer, unless the client has left."""
        if self._settle():
            self.future.set_result(result)

    def fail(self, error: BaseException) -> None:
        """Give an error, unless the client has left."""
        if self._settle():
            self.future.set_exception(error)

    def _settle(self) -> bool:
        """Whether this caller is the one who answers."""
        with self._lock:
            if self._settled:
                return False
            self._settled = True
            self.spent.total = (time.monotonic() - self.accepted) * 1e3
            return self.future.set_running_or_notify_cancel()
