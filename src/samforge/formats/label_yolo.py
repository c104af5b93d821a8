"""Labels as a YOLO segmentation data set: a text a picture, a line an object."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from samforge.core.errors import SettingError
from samforge.formats._growing_folder import GrowingFolder
from samforge.formats.labels import DataSet, LabelledPicture, UniqueStems
from samforge.formats.outlines import polygons_from_crop
from samforge.formats.pictures import place_picture

_TOWARDS_CORNER = 0.25
"""Of a pixel: readers cut coordinates off to whole pixels, or round them; both hit this one."""


class YoloLabels:
    """Writes ``images/``, ``labels/`` and ``data.yaml``, as ultralytics reads them.

    One object is one line. The format has one polygon for it: seams of no width lead into its
    holes and to its other parts, so that what is drawn of the line is the object again. It runs
    through the centres of the outermost pixels, for readers fill it together with the pixels on it.
    Pictures without objects have an empty text. Names of folders become part of names of files.
    """

    def __init__(self, path: Path, data: DataSet) -> None:
        """Begin a folder.

        Raises:
            OutputError: It cannot be written.
        """
        self._data, self._folder, self._stems = data, GrowingFolder(path), UniqueStems()
        names = "".join(
            f"  {number}: {json.dumps(name, ensure_ascii=False)}\n"
            for number, name in enumerate(data.categories)
        )
        about = json.dumps(dict(data.provenance), ensure_ascii=True)
        # Without "path" both are relative to this file. There is no split: training needs one.
        text = f"train: images\nval: images\nnames:\n{names}# samforge label: {about}\n"
        self._folder.write("data.yaml", text.encode("utf-8", "backslashreplace"))
        self._folder.place("images/.")
        self._folder.place("labels/.")

    def add(self, picture: LabelledPicture) -> None:
        """Append a picture."""
        stem = self._stems.stem(picture.name.replace("/", "_"))
        place_picture(picture.name, self._folder.place(f"images/{stem}"), self._data)
        lines = []
        size = np.array(picture.size_hw[::-1], np.float64)
        for one, (crop, top_left) in zip(picture.objects, picture.crops(), strict=True):
            ring = polygons_from_crop(crop, top_left, centres=True).bridged()
            ring = (ring - _TOWARDS_CORNER) / size
            if len(ring) < 3:
                raise SettingError(f"An object of {picture.name} has no outline: it is empty.")
            points = " ".join(f"{value:.6g}" for value in ring.ravel().tolist())
            lines.append(f"{one.category} {points}\n")
        self._folder.write(f"labels/{stem}.txt", "".join(lines).encode())

    def finish(self) -> Path:
        """Put the folder under its name."""
        return self._folder.finish()

    def discard(self) -> None:
        """Give up."""
        self._folder.discard()
