"""Who is told how far a verb is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Done: TypeAlias = Callable[[], None]
"""Called after each image, frame or round."""
Note: TypeAlias = Callable[[str], None]
"""Told what a reader has to know, in a sentence."""


def unseen() -> None:
    """Nobody is told."""


def unread(words: str) -> None:
    """Nobody is told."""
    del words
