"""Labels as LabelMe files: one JSON a picture, with polygons that can be edited."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from samforge.core.words import json_text
from samforge.formats._growing_folder import GrowingFolder
from samforge.formats.labels import DataSet, LabelledPicture, UniqueStems
from samforge.formats.outlines import Outline, polygons_from_crop
from samforge.formats.pictures import place_picture

_VERSION = "5.5.0"  # of LabelMe, whose form of the file this is


class LabelMeLabels:
    """Writes ``NAME.json`` beside the picture it is of.

    Each connected part of an object is a polygon, and parts of one object share a ``group_id``, as
    LabelMe has it. A seam of no width leads into a hole.
    """

    def __init__(self, path: Path, data: DataSet) -> None:
        """Begin a folder.

        Raises:
            OutputError: It cannot be written.
        """
        self._data, self._folder, self._stems = data, GrowingFolder(path), UniqueStems()

    def add(self, picture: LabelledPicture) -> None:
        """Append a picture."""
        height, width = picture.size_hw
        stem = self._stems.stem(picture.name)
        image = place_picture(picture.name, self._folder.place(stem), self._data)
        shapes = []
        for number, (one, crop) in enumerate(zip(picture.objects, picture.crops(), strict=True), 1):
            outline = polygons_from_crop(*crop)
            shapes += _shapes(outline, self._data.categories[one.category], number, one.score)
        table = {
            "version": _VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": PurePosixPath(image).name,
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
            "samforge": {"name": picture.name, **self._data.provenance},
        }
        text = json_text(table, indent=None) + "\n"
        self._folder.write(f"{stem}.json", text.encode("utf-8", "backslashreplace"))

    def finish(self) -> Path:
        """Put the folder under its name."""
        return self._folder.finish()

    def discard(self) -> None:
        """Give up."""
        self._folder.discard()


def _shapes(outline: Outline, label: str, number: int, score: float) -> list[dict[str, Any]]:
    alone = len(outline.parts) == 1
    return [
        {
            "label": label,
            "points": ring.tolist(),
            "group_id": None if alone else number,
            "description": f"score {score:g}",
            "shape_type": "polygon",
            "flags": {},
            "mask": None,
        }
        for ring in outline.bridged_parts()
    ]
