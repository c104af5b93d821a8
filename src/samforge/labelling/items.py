"""What is labelled, one by one: where each picture or video is, and its name in the data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, TypeAlias

from samforge.core.errors import InputError
from samforge.core.words import encodable
from samforge.formats import MOST_ID

Kind = Literal["picture", "video"]
FRAME_STEP = 1_000_000
"""Between the numbers of a video's frames: the most items of a source with videos."""
MOST_FRAMES = MOST_ID // FRAME_STEP - 1
"""Of a video: over 8 hours at 30 a second."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WholeFile:
    """A file of its own: a path, or a URL that fsspec opens."""

    file: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PartOfFile:
    """Bytes inside a file: a member of a tar."""

    file: str
    offset: int
    size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ParquetCell:
    """One cell of a Parquet file."""

    file: str
    group: int
    row: int
    column: str


Place: TypeAlias = WholeFile | PartOfFile | ParquetCell


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One picture or video."""

    name: str
    """Unique in the data set: a relative path with ``/``, in UTF-8."""
    place: Place
    """Where its bytes are."""
    stamp: str
    """Size and time of its file, or what else tells that it changed."""
    kind: Kind = "picture"
    """What it is."""
    given_id: int | None = None
    """Its number in the COCO file that listed it."""

    @property
    def uri(self) -> str:
        """Where it is, for provenance: text that is UTF-8 whatever its file is called."""
        file = encodable(self.place.file)
        if isinstance(self.place, WholeFile):
            return file
        if isinstance(self.place, PartOfFile):
            return f"{file}#{self.name}"
        return f"{file}#row-group={self.place.group}&row={self.place.row}"

    @property
    def path(self) -> Path | None:
        """The local file that holds it and nothing else; None if there is none."""
        if isinstance(self.place, WholeFile) and not is_url(self.place.file):
            return Path(self.place.file)
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """What a source holds."""

    root: str
    """Path or URL: where it is gone, the source is."""
    items: Sequence[Item]
    """In the order of the data set."""
    notes: tuple[str, ...] = ()
    """What of it was left out, and why."""


class SourceError(InputError):
    """A source cannot be listed, holds nothing, or is gone."""


def require_numbers(items: Sequence[Item], numbers: Sequence[int]) -> None:
    """Make sure that frames of videos can have numbers of their own.

    Raises:
        SourceError: There are more items than fit between two frames.
    """
    if max(numbers, default=0) > FRAME_STEP and any(one.kind == "video" for one in items):
        raise SourceError(
            f"Items are numbered up to {max(numbers):,}, and beside videos at most {FRAME_STEP:,} "
            "can be. Label videos into an output of their own."
        )


def is_url(place: str) -> bool:
    """Whether fsspec is asked for it."""
    return "://" in place


def checked_name(name: str, source: str) -> str:
    r"""A name that others wrote, for files of the data set: a byte that is no UTF-8 is ``\xff``.

    Raises:
        SourceError: It leads out of the folder of the data set, or no file can have it.
    """
    pure = PurePosixPath(name.replace("\\", "/"))
    if pure.is_absolute() or ".." in pure.parts or "\0" in name or not pure.name:
        raise SourceError(
            f"{source} names a picture {name!r:.120}, which is no relative path inside a folder. "
            "Give names relative to one folder."
        )
    return encodable(pure.as_posix())


def shared_names(places: Sequence[str]) -> list[str]:
    """Name files or URLs relative to the folder that all of them share."""
    parts = [place.split("/") for place in places]
    shared = 0
    folders = [one[:-1] for one in parts]
    while folders and all(len(one) > shared for one in folders):
        if len({one[shared] for one in folders}) > 1:
            break
        shared += 1
    return ["/".join(one[shared:]).replace("://", "/").replace(":", "") for one in parts]
