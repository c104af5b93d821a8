"""Labelled data by the words of ``--data``: ``scenes:1000``, ``coco:annotations.json``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from samforge.core.errors import SettingError
from samforge.core.labelled import LabelledImage
from samforge.core.native import Report
from samforge.formats import coco_data_from_file
from samforge.models import tiny


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledData:
    """Images with questions, drawn or read afresh for each bundle."""

    name: str
    """As the user may write it: ``scenes:1000``."""
    count: int
    """How many images there are."""
    words: frozenset[str]
    """Words of the phrases that are asked."""
    taught: bool
    """Whether they mean nothing to a model that was not taught them, as those of drawn scenes."""
    images: Callable[[], Iterator[LabelledImage]]
    """Goes through them once; what cannot be used is told as the data were asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataOptions:
    """What the command line says beside the name of the data."""

    seed: int = 0
    """Shifts what a source draws."""
    folder: Path | None = None
    """Folder of the images of a file."""
    limit: int | None = None
    """Most images to use; None for all."""


def data_from_text(
    text: str, options: DataOptions | None = None, *, report: Report | None = None
) -> LabelledData:
    """Find labelled data by name.

    Args:
        text: Name of a source, a colon and what the source wants: ``scenes:1000``.
        options: What else was said; None takes the defaults.
        report: Takes what of a file is not usable; None raises at the first.

    Raises:
        SettingError: There is no such source, or it wants something else.
        ImageError: Pictures that a file names are missing.
    """
    name, _, argument = text.partition(":")
    if name not in SOURCES:
        known = "; ".join(f"{source.usage}: {source.meaning}" for source in SOURCES.values())
        raise SettingError(f"--data is '{text}', and there is no source '{name}'. Known: {known}.")
    return SOURCES[name].read(argument, options or DataOptions(), report)


def _scenes(argument: str, options: DataOptions, _: Report | None) -> LabelledData:
    count = int(argument) if argument.isascii() and argument.isdigit() else 0
    if count < 1:
        raise SettingError(
            f"--data is 'scenes:{argument}'. Give a number of scenes from 1 up: scenes:1000."
        )
    if options.folder is not None:
        raise SettingError(
            f"--images is {options.folder}, and --data is scenes, which are drawn. "
            "Give it with --data coco:FILE.json."
        )
    count = min(count, options.limit or count)
    return LabelledData(
        name=f"scenes:{count}",
        count=count,
        words=frozenset(word for phrase in tiny.vocabulary() for word in phrase.split()),
        taught=True,
        images=lambda: tiny.labelled_scenes(count, first=options.seed),
    )


def _coco(argument: str, options: DataOptions, report: Report | None) -> LabelledData:
    if not argument:
        raise SettingError("--data is 'coco:'. Give a COCO file: coco:annotations.json.")
    data = coco_data_from_file(
        Path(argument),
        folder=options.folder,
        seed=options.seed,
        limit=options.limit,
        report=report,
    )
    return LabelledData(
        name=f"coco:{argument}",
        count=len(data.pictures),
        words=frozenset(word for phrase in data.phrases for word in phrase.split()),
        taught=False,
        images=lambda: data.images(report=report),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One kind of labelled data."""

    usage: str
    """How it is written."""
    meaning: str
    """What it is."""
    read: Callable[[str, DataOptions, Report | None], LabelledData]
    """From what follows the colon, the options, and what takes problems."""


SOURCES: Mapping[str, Source] = {
    "scenes": Source(
        usage="scenes:N", meaning="N drawn held-out scenes of the tiny model", read=_scenes
    ),
    "coco": Source(
        usage="coco:FILE.json", meaning="labelled images with masks in COCO's format", read=_coco
    ),
}
