"""Labelled data by the words of ``--data``: ``scenes:1000``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from samforge.core.errors import SettingError
from samforge.core.labelled import LabelledImage
from samforge.models import tiny


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledData:
    """Images with questions, drawn or read afresh for each bundle."""

    name: str
    """As the user may write it: ``scenes:1000``."""
    count: int
    """How many images there are."""
    words: frozenset[str]
    """Words that a model has to know to be asked; empty when any model can be."""
    images: Callable[[], Iterator[LabelledImage]]
    """Goes through them once."""


def data_from_text(text: str, *, seed: int = 0) -> LabelledData:
    """Find labelled data by name.

    Args:
        text: Name of a source, a colon and what the source wants: ``scenes:1000``.
        seed: Shifts what a source draws.

    Raises:
        SettingError: There is no such source, or it wants something else.
    """
    name, _, argument = text.partition(":")
    if name not in SOURCES:
        known = "; ".join(f"{source.usage}: {source.meaning}" for source in SOURCES.values())
        raise SettingError(f"--data is '{text}', and there is no source '{name}'. Known: {known}.")
    return SOURCES[name].read(argument, seed)


def _scenes(argument: str, seed: int) -> LabelledData:
    count = int(argument) if argument.isascii() and argument.isdigit() else 0
    if count < 1:
        raise SettingError(
            f"--data is 'scenes:{argument}'. Give a number of scenes from 1 up: scenes:1000."
        )
    return LabelledData(
        name=f"scenes:{count}",
        count=count,
        words=frozenset(word for phrase in tiny.vocabulary() for word in phrase.split()),
        images=lambda: tiny.labelled_scenes(count, first=seed),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One kind of labelled data."""

    usage: str
    """How it is written."""
    meaning: str
    """What it is."""
    read: Callable[[str, int], LabelledData]
    """From what follows the colon, and the seed."""


SOURCES: Mapping[str, Source] = {
    "scenes": Source(
        usage="scenes:N", meaning="N drawn held-out scenes of the tiny model", read=_scenes
    ),
}
