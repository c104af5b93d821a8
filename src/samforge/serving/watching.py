"""What a scheduler tells of its work: metrics are made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from samforge.serving.jobs import Spent


class Watcher(Protocol):
    """Hears of what happens. Called from several threads, and quick."""

    def encoded(self, images: int, milliseconds: float) -> None:
        """A batch of pictures was encoded."""
        ...

    def detected(self, jobs: int, pairs: int, milliseconds: float) -> None:
        """So many pairs of a picture and a phrase, of so many jobs, went through in one call."""
        ...

    def looked_up(self, *, known: bool) -> None:
        """A picture's encoding was there, or under way, or had to be made."""
        ...

    def refused(self, reason: str) -> None:
        """A job was not accepted: ``full``, ``client``, ``bytes``, ``late`` or ``closing``."""
        ...

    def ended(self, outcome: str, spent: Spent) -> None:
        """A job ended: ``answered``, ``failed``, ``late`` or ``left``."""
        ...


class Unwatched:
    """Hears nothing."""

    def encoded(self, images: int, milliseconds: float) -> None:
        """Nothing."""

    def detected(self, jobs: int, pairs: int, milliseconds: float) -> None:
        """Nothing."""

    def looked_up(self, *, known: bool) -> None:
        """Nothing."""

    def refused(self, reason: str) -> None:
        """Nothing."""

    def ended(self, outcome: str, spent: Spent) -> None:
        """Nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """How much a scheduler has to do now."""

    waiting: int
    """Jobs that are accepted and not yet answered."""
    to_decode: int
    """Pictures that wait to be decoded."""
    to_encode: int
    """Pictures that wait to be encoded."""
    to_detect: int
    """Jobs whose picture is there."""
    expected_s: float
    """Seconds that a job which came now would wait, by what the last ones took."""
    closing: bool
    """Whether nothing more is accepted."""
