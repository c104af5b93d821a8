"""Labels as pictures: the class of each pixel with a palette, or the number of its object."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from samforge.core.errors import SettingError
from samforge.core.outputs import SOFTWARE
from samforge.core.words import json_text
from samforge.formats._growing_folder import GrowingFolder
from samforge.formats.labels import DataSet, LabelledPicture, UniqueStems, require_few_classes

_MOST_CLASSES = 255
_MOST_OBJECTS = 65_535


class ClassMasks:
    """Writes ``NAME.png``: 0 where nothing is, else the number of the class from 1.

    Where objects overlap, the one with the best score shows. ``classes.json`` names the numbers.
    """

    def __init__(self, path: Path, data: DataSet) -> None:
        """Begin a folder.

        Raises:
            OutputError: It cannot be written.
            SettingError: There are more than 255 classes.
        """
        require_few_classes(data.categories, _MOST_CLASSES, "A palette PNG")
        self._folder, self._stems = GrowingFolder(path), UniqueStems()
        names = {0: "background"} | dict(enumerate(data.categories, 1))
        about = {"info": {"description": "samforge label", **data.provenance}, "classes": names}
        self._folder.write("classes.json", (json_text(about) + "\n").encode())
        self._palette = voc_palette()

    def add(self, picture: LabelledPicture) -> None:
        """Append a picture."""
        painted = _painted(picture, np.uint8, lambda row: picture.objects[row].category + 1)
        image = Image.fromarray(painted)
        image.putpalette(self._palette)
        self._folder.write(f"{self._stems.stem(picture.name)}.png", _png(image))

    def finish(self) -> Path:
        """Put the folder under its name."""
        return self._folder.finish()

    def discard(self) -> None:
        """Give up."""
        self._folder.discard()


class IdMasks:
    """Writes ``NAME.png`` in 16 bits: 0 where nothing is, else the number of the object from 1.

    Where objects overlap, the one with the best score shows. ``objects.jsonl`` has a line for each
    picture, with the class and the score of every number.
    """

    def __init__(self, path: Path, data: DataSet) -> None:
        """Begin a folder.

        Raises:
            OutputError: It cannot be written.
        """
        self._data, self._folder, self._stems = data, GrowingFolder(path), UniqueStems()
        about = {"info": {"description": "samforge label", **data.provenance}}
        self._folder.write("provenance.json", (json_text(about) + "\n").encode())
        self._folder.write("objects.jsonl", b"")

    def add(self, picture: LabelledPicture) -> None:
        """Append a picture.

        Raises:
            SettingError: It holds more than 65,535 objects.
        """
        if len(picture.objects) > _MOST_OBJECTS:
            raise SettingError(
                f"{picture.name} holds {len(picture.objects):,} objects, and 16 bits have room for "
                f"{_MOST_OBJECTS:,}. Choose another --format, or raise the threshold."
            )
        painted = _painted(picture, np.uint16, lambda row: row + 1)
        name = f"{self._stems.stem(picture.name)}.png"
        self._folder.write(name, _png(Image.fromarray(painted)))
        entry = {
            "file": name,
            "name": picture.name,
            "objects": [
                {
                    "id": number,
                    "class": self._data.categories[one.category],
                    "phrase": one.phrase,
                    "score": one.score,
                    "track_id": one.track_id,
                }
                for number, one in enumerate(picture.objects, 1)
            ],
        }
        self._folder.append("objects.jsonl", (json_text(entry, indent=None) + "\n").encode())

    def finish(self) -> Path:
        """Put the folder under its name."""
        return self._folder.finish()

    def discard(self) -> None:
        """Give up."""
        self._folder.discard()


def voc_palette() -> list[int]:
    """The 256 colours of PASCAL VOC's masks, flat: bits of the number spread over the channels.

    Source: ``VOClabelcolormap.m`` of the VOC development kit.
    """
    colors = np.zeros((256, 3), np.uint8)
    for number in range(256):
        left = number
        for shift in range(7, -1, -1):
            for channel in range(3):
                colors[number, channel] |= (left >> channel & 1) << shift
            left >>= 3
    flat: list[int] = colors.ravel().tolist()
    return flat


def _painted(
    picture: LabelledPicture, dtype: type[np.unsignedinteger], value: Callable[[int], int]
) -> npt.NDArray[np.unsignedinteger]:
    """The numbers of pixels, (H, W): the best score is painted last."""
    painted = np.zeros(picture.size_hw, dtype)
    crops = picture.crops()
    order = sorted(range(len(crops)), key=lambda row: (picture.objects[row].score, -row))
    for row in order:
        crop, (top, left) = crops[row]
        window = painted[top : top + crop.shape[0], left : left + crop.shape[1]]
        window[crop] = value(row)
    return painted


def _png(image: Image.Image) -> bytes:
    notes = PngInfo()
    notes.add_text("Software", SOFTWARE)
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=3, pnginfo=notes)
    return file.getvalue()
