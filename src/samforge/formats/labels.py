"""Labels of a data set on their way into files: what every writer takes, one picture at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from samforge.core.errors import SettingError
from samforge.core.masks import Masks
from samforge.core.runs import Crop

MOST_OBJECTS = 10_000
"""Objects of one picture."""
MOST_ID = 2**53 // MOST_OBJECTS - 1
"""Number of a picture: those of its objects are exact in JavaScript then, which reads every number
as a double."""

ReadPicture: TypeAlias = Callable[[str], bytes | Path]
"""Gives a picture by its name: its file where it has one, else the bytes of an image file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledObject:
    """One object of a picture."""

    category: int
    """Its class, from 0."""
    phrase: str
    """What found it."""
    score: float
    """0 to 1."""
    bbox: tuple[int, int, int, int]
    """Left, top, width and height of its mask, pixels."""
    area: int
    """Pixels."""
    counts: str
    """COCO's compressed RLE, down the columns of the whole picture."""
    track_id: int | None = None
    """Its number in a video, the same in all frames."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoFrameOf:
    """Which frame of which video a picture is."""

    video_id: int
    """Unique among the videos of the data set, the same in every run."""
    video: str
    """Name of the video in the data set."""
    index: int
    """Number of the frame, from 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledPicture:
    """One picture and its labels."""

    id: int
    """Unique in the data set, the same in every run."""
    name: str
    """Unique in the data set: a relative path with ``/``."""
    uri: str
    """Where it came from."""
    sha256: str
    """Of the bytes that were read; empty for a frame of a video."""
    size_hw: tuple[int, int]
    """Height and width, pixels."""
    objects: tuple[LabelledObject, ...]
    """Class by class, best score first."""
    best_scores: Mapping[str, float]
    """Best score of each phrase, admitted or not."""
    cut_off: int = 0
    """Objects that a limit left out."""
    frame: VideoFrameOf | None = None
    """Where it is a frame of a video."""

    def object_id(self, row: int) -> int:
        """Of an object, by its place in the picture: no other picture moves it.

        It is below 2^53 where the picture's is at most :data:`MOST_ID`.
        """
        return self.id * MOST_OBJECTS + row + 1

    def masks(self) -> Masks:
        """The masks of all objects."""
        size = list(self.size_hw)
        return Masks.from_rle(
            ({"size": size, "counts": one.counts} for one in self.objects), self.size_hw
        )

    def crops(self) -> list[tuple[Crop, tuple[int, int]]]:
        """Each mask in its tight box, bool (h, w), with row and column of its first pixel."""
        masks = self.masks()
        return [masks.crop(i) for i in range(len(masks))]

    def to_table(self) -> dict[str, Any]:
        """As plain values, short enough to be kept by the hundred thousand."""
        return {
            "id": self.id,
            "name": self.name,
            "uri": self.uri,
            "sha256": self.sha256,
            "size_hw": list(self.size_hw),
            "objects": [
                [o.category, o.phrase, o.score, list(o.bbox), o.area, o.counts, o.track_id]
                for o in self.objects
            ],
            "best_scores": dict(self.best_scores),
            "cut_off": self.cut_off,
        }

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> LabelledPicture:
        """Read what :meth:`to_table` gave."""
        objects = tuple(
            LabelledObject(
                category=category,
                phrase=phrase,
                score=score,
                bbox=(bbox[0], bbox[1], bbox[2], bbox[3]),
                area=area,
                counts=counts,
                track_id=track_id,
            )
            for category, phrase, score, bbox, area, counts, track_id in table["objects"]
        )
        height, width = table["size_hw"]
        return cls(
            **{name: table[name] for name in ("id", "name", "uri", "sha256", "cut_off")},
            size_hw=(height, width),
            objects=objects,
            best_scores=table["best_scores"],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSet:
    """What holds for all pictures."""

    categories: tuple[str, ...]
    """Names of the classes, in order."""
    provenance: Mapping[str, Any]
    """Which model made the labels, of what, and how: plain values."""
    picture: ReadPicture
    """Gives the pictures, for formats that hold them or point to them."""
    copy_pictures: bool = False
    """Whether formats that hold pictures copy the files instead of linking to them."""


class LabelWriter(Protocol):
    """Writes one data set in one format, picture by picture; nothing shows until it is whole."""

    def add(self, picture: LabelledPicture) -> None:
        """Append a picture.

        Raises:
            OutputError: The disk is full.
            SettingError: The format cannot hold it.
        """
        ...

    def finish(self) -> Path:
        """Put the data set under its name."""
        ...

    def discard(self) -> None:
        """Give up: nothing is left behind, and an earlier data set stays."""
        ...


class UniqueStems:
    """Names for files that belong to pictures: no two alike, also where only the endings differ."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._numbers: dict[str, int] = {}

    def stem(self, name: str) -> str:
        """The name without its ending; ``a/1-2`` where ``a/1`` is taken.

        Names that differ in case alone count as equal, as they are on some systems.
        """
        folder, slash, file = name.rpartition("/")
        base, dot, _ = file.rpartition(".")
        wanted = f"{folder}{slash}{base if dot and base else file}"
        stem, key = wanted, wanted.casefold()
        while stem.casefold() in self._taken:
            number = self._numbers.get(key, 2)
            stem, self._numbers[key] = f"{wanted}-{number}", number + 1
        self._taken.add(stem.casefold())
        return stem


def require_few_classes(categories: tuple[str, ...], most: int, what: str) -> None:
    """Make sure that a format has room for the classes.

    Raises:
        SettingError: It has not.
    """
    if len(categories) > most:
        raise SettingError(
            f"{what} holds {most:,} classes, the ontology has {len(categories):,}. "
            "Choose another --format, such as coco."
        )
