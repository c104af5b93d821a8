"""Labels as "CVAT for images 1.1": one XML file, masks as CVAT keeps them."""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from samforge.core.runs import Crop
from samforge.core.words import json_text
from samforge.formats._growing import GrowingFile
from samforge.formats.labels import DataSet, LabelledObject, LabelledPicture


class CvatLabels:
    """Writes the file that CVAT imports into a task with the same pictures.

    A mask is ``left``, ``top``, ``width``, ``height`` and runs along the rows of that box, the
    first of what is not covered. The format: https://docs.cvat.ai/docs/dataset_management/formats/.
    """

    def __init__(self, path: Path, data: DataSet) -> None:
        """Begin a file.

        Raises:
            OutputError: It cannot be written.
        """
        self._data, self._file = data, GrowingFile(path)
        labels = "".join(
            f"<label><name>{escape(name)}</name><type>any</type><attributes></attributes></label>"
            for name in data.categories
        )
        about = escape(json_text(dict(data.provenance), indent=None))
        self._file.write(
            '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n'
            f"<meta><task><labels>{labels}</labels></task><samforge>{about}</samforge></meta>\n"
        )
        self._count = 0

    def add(self, picture: LabelledPicture) -> None:
        """Append a picture."""
        height, width = picture.size_hw
        self._file.write(
            f'<image id="{self._count}" name={_attribute(picture.name)} width="{width}" '
            f'height="{height}">\n'
        )
        self._count += 1
        for order, (one, (crop, top_left)) in enumerate(
            zip(picture.objects, picture.crops(), strict=True)
        ):
            self._file.write(self._mask(one, crop, top_left, order))
        self._file.write("</image>\n")

    def finish(self) -> Path:
        """Put the file under its name."""
        self._file.write("</annotations>\n")
        return self._file.finish()

    def discard(self) -> None:
        """Give up."""
        self._file.discard()

    def _mask(self, one: LabelledObject, crop: Crop, top_left: tuple[int, int], order: int) -> str:
        label = _attribute(self._data.categories[one.category])
        runs = ", ".join(map(str, row_runs(crop)))
        return (
            f'<mask label={label} source="auto" occluded="0" rle="{runs}" left="{top_left[1]}" '
            f'top="{top_left[0]}" width="{crop.shape[1]}" height="{crop.shape[0]}" '
            f'z_order="{order}"></mask>\n'
        )


def row_runs(crop: Crop) -> list[int]:
    """Lengths of runs of 0 and 1 in turn along the rows of a crop; the first one is of 0."""
    flat = crop.ravel()
    edges = np.flatnonzero(np.diff(flat, prepend=False)) if len(flat) else np.zeros(0, np.int64)
    lengths: list[int] = np.diff(edges, prepend=0, append=len(flat)).tolist()
    return lengths


def _attribute(text: str) -> str:
    return quoteattr("".join(c if c.isprintable() else "\ufffd" for c in text))
