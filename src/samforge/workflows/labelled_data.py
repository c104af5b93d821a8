"""Labelled data by the words of ``--data``: ``scenes:1000``, ``videos:annotations.json``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from samforge.core.errors import SettingError
from samforge.core.labelled import LabelledImage, LabelledVideo
from samforge.core.native import Report
from samforge.formats import coco_data_from_file, video_data_from_file
from samforge.models import tiny
from samforge.models.tiny.crossing import FRAMES
from samforge.models.tiny.held_out_clips import labelled_videos


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
class LabelledVideos:
    """Videos with questions, drawn or read afresh for each bundle."""

    name: str
    """As the user may write it: ``clips:20``."""
    count: int
    """How many videos there are."""
    frames: int
    """Their frames."""
    words: frozenset[str]
    """Words of the phrases that are asked."""
    taught: bool
    """See :class:`LabelledData`."""
    videos: Callable[[], Iterator[LabelledVideo]]
    """Goes through them once; what cannot be used is told as the data were asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataOptions:
    """What the command line says beside the name of the data."""

    seed: int = 0
    """Shifts what a source draws."""
    folder: Path | None = None
    """Folder of the images of a file."""
    limit: int | None = None
    """Most images or videos to use; None for all."""
    videos: Path | None = None
    """Folder of the frames of labelled videos."""


def data_from_text(
    text: str, options: DataOptions | None = None, *, report: Report | None = None
) -> LabelledData | LabelledVideos:
    """Find labelled images or videos by name.

    Args:
        text: Name of a source, a colon and what the source wants: ``scenes:1000``. A file alone,
            ``FILE.json``, is ``videos:FILE.json`` where a folder of videos is given, and else
            ``coco:FILE.json``.
        options: What else was said; None takes the defaults.
        report: Takes what of a file is not usable; None raises at the first.

    Raises:
        SettingError: There is no such source, or it wants something else.
        ImageError: Pictures that a file names are missing.
    """
    options = options or DataOptions()
    if text.lower().endswith(".json") and text.partition(":")[0] not in SOURCES:
        text = f"{'coco' if options.videos is None else 'videos'}:{text}"
    name, _, argument = text.partition(":")
    if name not in SOURCES:
        known = "; ".join(f"{source.usage}: {source.meaning}" for source in SOURCES.values())
        raise SettingError(f"--data is '{text}', and there is no source '{name}'. Known: {known}.")
    for option, given, source in (
        ("--images", options.folder, "coco"),
        ("--videos", options.videos, "videos"),
    ):
        if given is not None and name != source:
            raise SettingError(
                f"{option} is {given}, and --data is {text}. "
                f"Give it with --data {SOURCES[source].usage}."
            )
    return SOURCES[name].read(argument, options, report)


def images_from_text(
    text: str, options: DataOptions | None = None, *, report: Report | None = None
) -> LabelledData:
    """Find labelled images by name: see :func:`data_from_text`.

    Raises:
        SettingError: There is no such source, or it holds videos.
    """
    data = data_from_text(text, options, report=report)
    if isinstance(data, LabelledVideos):
        raise SettingError(f"--data is {text}, which holds videos: call compare_videos.")
    return data


def videos_from_text(
    text: str, options: DataOptions | None = None, *, report: Report | None = None
) -> LabelledVideos:
    """Find labelled videos by name: see :func:`data_from_text`.

    Raises:
        SettingError: There is no such source, or it holds images.
    """
    data = data_from_text(text, options, report=report)
    if isinstance(data, LabelledData):
        raise SettingError(f"--data is {text}, which holds images: call compare.")
    return data


def _number(argument: str, name: str, example: int) -> int:
    count = int(argument) if argument.isascii() and argument.isdigit() else 0
    if count < 1:
        raise SettingError(
            f"--data is '{name}:{argument}'. Give a number of {name} from 1 up: {name}:{example}."
        )
    return count


def _scenes(argument: str, options: DataOptions, _: Report | None) -> LabelledData:
    count = _number(argument, "scenes", 1000)
    count = min(count, options.limit or count)
    return LabelledData(
        name=f"scenes:{count}",
        count=count,
        words=_words(tiny.vocabulary()),
        taught=True,
        images=lambda: tiny.labelled_scenes(count, first=options.seed),
    )


def _clips(argument: str, options: DataOptions, _: Report | None) -> LabelledVideos:
    count = _number(argument, "clips", 20)
    count = min(count, options.limit or count)
    return LabelledVideos(
        name=f"clips:{count}",
        count=count,
        frames=count * FRAMES,
        words=_words(tiny.vocabulary()),
        taught=True,
        videos=lambda: labelled_videos(count, first=options.seed),
    )


def _videos(argument: str, options: DataOptions, report: Report | None) -> LabelledVideos:
    if not argument:
        raise SettingError(
            "--data is 'videos:'. Give a file of labelled videos: videos:annotations.json."
        )
    data = video_data_from_file(
        Path(argument),
        folder=options.videos,
        seed=options.seed,
        limit=options.limit,
        report=report,
    )
    return LabelledVideos(
        name=f"videos:{argument}",
        count=len(data.asked),
        frames=data.frames,
        words=_words(data.phrases),
        taught=False,
        videos=lambda: data.videos(report=report),
    )


def _words(phrases: Iterable[str]) -> frozenset[str]:
    return frozenset(word for phrase in phrases for word in phrase.split())


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
        words=_words(data.phrases),
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
    read: Callable[[str, DataOptions, Report | None], LabelledData | LabelledVideos]
    """From what follows the colon, the options, and what takes problems."""


SOURCES: Mapping[str, Source] = {
    "scenes": Source(
        usage="scenes:N", meaning="N drawn held-out scenes of the tiny model", read=_scenes
    ),
    "coco": Source(
        usage="coco:FILE.json", meaning="labelled images with masks in COCO's format", read=_coco
    ),
    "clips": Source(
        usage="clips:N", meaning="N drawn held-out clips of the tiny model's tracker", read=_clips
    ),
    "videos": Source(
        usage="videos:FILE.json",
        meaning="labelled videos in YouTube-VIS's, SA-Co/VEval's or COCO-VID's format",
        read=_videos,
    ),
}
