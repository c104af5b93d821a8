"""The ledger as data sets: every format is written picture by picture, in the source's order."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from samforge.core.closing import Closing
from samforge.core.files import PROBE, atomic_write_text, output_errors
from samforge.core.placing import parts_left, remove_place
from samforge.core.words import json_text
from samforge.formats import (
    LABEL_FORMATS,
    DataSet,
    LabelledPicture,
    LabelWriter,
    VideoFrameOf,
    label_writer,
)
from samforge.labelling.items import FRAME_STEP, Item, SourceError
from samforge.labelling.labeller import frame_name
from samforge.labelling.ledger import Ledger
from samforge.labelling.outcome import picture_from_body
from samforge.labelling.reader import ItemReader
from samforge.media import VideoFrame, VideoReader, read_image

FAILURES = "failures.jsonl"
"""File in the output folder: items without labels, one a line."""


def labelled_pictures(
    ledger: Ledger, items: Sequence[Item], chosen: Sequence[int]
) -> Iterator[LabelledPicture]:
    """Everything labelled of the chosen items, numbered.

    A picture has its number in the ledger, whatever came of others; pictures of one COCO file keep
    their own. The first frame of a video has the video's number, and each further one
    ``FRAME_STEP`` more: how long a video is, and how far it could be read, moves no other.
    """
    own = all(item.given_id is not None and item.kind == "picture" for item in items)
    numbers = ledger.numbers(items)
    for place in sorted(chosen):
        item, number = items[place], numbers[place]
        if own and item.given_id is not None:
            number = item.given_id
        for index, body in enumerate(ledger.bodies(item.name)):
            frame = None
            if item.kind == "video":
                frame = VideoFrameOf(video_id=number, video=item.name, index=index)
            yield replace(picture_from_body(body), id=number + FRAME_STEP * index, frame=frame)


def export(
    ledger: Ledger,
    items: Sequence[Item],
    chosen: Sequence[int],
    out: Path,
    formats: Sequence[str],
    data: DataSet,
) -> tuple[Path, ...]:
    """Write the data sets, and the list of failures; each appears whole or not at all.

    Formats that an earlier run wrote into the folder are written again, too.

    Returns:
        What was written, in the order of the formats.

    Raises:
        OutputError: The disk is full.
        SettingError: A format cannot hold the labels.
    """
    remove_left_behind(out)
    formats = (*formats, *_earlier(ledger, out, formats))
    signature = _signature(ledger, items, chosen, formats, data)
    places = [out / LABEL_FORMATS[name] for name in formats]
    if ledger.noted("exported") == signature and all(place.exists() for place in places):
        return tuple(places)
    _write_failures(ledger, items, chosen, out)
    # They are replaced one after the other: where that breaks off, none is known to be right.
    ledger.note("exported", "")
    ledger.note("formats", json.dumps(list(formats)))
    try:
        written = _written(labelled_pictures(ledger, items, chosen), out, formats, data)
    except BaseException:
        remove_left_behind(out)
        raise
    ledger.note("exported", signature)
    return written


def _earlier(ledger: Ledger, out: Path, formats: Sequence[str]) -> list[str]:
    """Formats that earlier runs wrote and that are still there: they must not fall behind."""
    known = json.loads(ledger.noted("formats") or "[]")
    return [
        name
        for name in known
        if name not in formats and name in LABEL_FORMATS and (out / LABEL_FORMATS[name]).exists()
    ]


def _written(
    pictures: Iterator[LabelledPicture], out: Path, formats: Sequence[str], data: DataSet
) -> tuple[Path, ...]:
    writers: list[LabelWriter] = []
    with ExitStack() as undo:
        for name in formats:
            writers.append(label_writer(name, out, data))
            undo.callback(writers[-1].discard)
        for picture in pictures:
            for writer in writers:
                writer.add(picture)
        written = tuple(writer.finish() for writer in writers)
        undo.pop_all()
    return written


def remove_left_behind(out: Path) -> None:
    """Remove what a killed run had begun to write: parts of its own files, and no others."""
    with output_errors(out):
        for name in (*LABEL_FORMATS.values(), FAILURES, PROBE):
            for part in parts_left(out / name):
                remove_place(part)


def _write_failures(
    ledger: Ledger, items: Sequence[Item], chosen: Sequence[int], out: Path
) -> None:
    failures = ledger.failures([items[i] for i in sorted(chosen)])
    lines = "".join(json_text(one, indent=None) + "\n" for one in failures)
    if lines:
        atomic_write_text(out / FAILURES, lines)
    else:
        with output_errors(out):
            (out / FAILURES).unlink(missing_ok=True)


def _signature(
    ledger: Ledger,
    items: Sequence[Item],
    chosen: Sequence[int],
    formats: Sequence[str],
    data: DataSet,
) -> str:
    """What the files depend on: equal ones need not be written again."""
    digest = hashlib.sha256()
    said: Mapping[str, Any] = {
        "formats": list(formats),
        "copy": data.copy_pictures,
        "provenance": dict(data.provenance),
    }
    digest.update(json.dumps(said, sort_keys=True).encode("utf-8", "backslashreplace"))
    numbers = ledger.numbers(items)
    for place in sorted(chosen):
        item, number = items[place], numbers[place]
        line = f"{number}\0{item.name}\0{item.stamp}\0{ledger.frames(item.name)}\n"
        digest.update(line.encode("utf-8", "backslashreplace"))
    for failure in ledger.failures(items):
        digest.update(json_text(failure, indent=None).encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


class Pictures(Closing):
    """Gives formats the pictures that they hold: read in order, a video once through."""

    def __init__(self, items: Sequence[Item]) -> None:
        self._items = {item.name: item for item in items}
        self._reader = ItemReader()
        self._video: tuple[str, VideoReader, Iterator[VideoFrame]] | None = None
        self._last = "", b""  # several formats ask for one frame

    def read(self, name: str) -> bytes | Path:
        """A picture by its name: its own file, or the bytes of one.

        Raises:
            SourceError: It is gone.
        """
        item = self._items.get(name)
        if item is None:
            if self._last[0] != name:
                self._last = name, self._frame(*name.rsplit("/", 1))
            return self._last[1]
        return item.path or self._reader.read(item)

    def rgb(self, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Its pixels, (H, W, 3)."""
        return read_image(self.read(name))

    def close(self) -> None:
        """Close what is open."""
        self._reader.close()
        self._end_video()

    def _frame(self, video: str, frame: str) -> bytes:
        if self._video is None or self._video[0] != video:
            self._end_video()
            item = self._items.get(video)
            if item is None or item.path is None:
                raise SourceError(f"{video}/{frame} is no picture of the source.")
            reader = VideoReader(item.path)
            self._video = video, reader, iter(reader.frames())
        for shot in self._video[2]:
            if frame_name(video, shot.index) == f"{video}/{frame}":
                file = io.BytesIO()
                Image.fromarray(shot.image_rgb).save(file, "PNG", compress_level=3)
                return file.getvalue()
        raise SourceError(f"{video} ends before {frame}. Was it replaced meanwhile?")

    def _end_video(self) -> None:
        if self._video is not None:
            self._video[1].close()
            self._video = None
