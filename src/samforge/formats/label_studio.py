"""Labels as pre-annotations of Label Studio: brush masks in its own packing."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from samforge.core.runs import Crop
from samforge.core.words import json_text
from samforge.formats._growing_folder import GrowingFolder
from samforge.formats.brush import brush_rle
from samforge.formats.labels import DataSet, LabelledPicture

_LOCAL = "/data/local-files/?d="


class LabelStudioLabels:
    """Writes ``tasks.json`` to import and ``config.xml`` for the project's labelling interface.

    Tasks point to pictures as Label Studio's local files do, ``/data/local-files/?d=NAME``: the
    local storage's root is the source's folder. Masks are exact.
    """

    def __init__(self, path: Path, data: DataSet) -> None:
        """Begin a folder.

        Raises:
            OutputError: It cannot be written.
        """
        self._data, self._folder = data, GrowingFolder(path)
        provenance = data.provenance
        self._version = f"samforge {provenance.get('samforge')} {provenance.get('bundle')}"
        self._folder.write("config.xml", _config(data).encode())
        self._folder.write("tasks.json", b"[")
        self._count = 0

    def add(self, picture: LabelledPicture) -> None:
        """Append a picture."""
        results = [self._result(picture, row, *crop) for row, crop in enumerate(picture.crops())]
        scores = [one.score for one in picture.objects]
        prediction = {
            "model_version": self._version,
            "score": min(scores, default=0.0),
            "result": results,
        }
        task = {
            "id": picture.id,
            "data": {"image": _LOCAL + quote(picture.name)},
            "meta": {"uri": picture.uri, "sha256": picture.sha256},
            "predictions": [prediction],
        }
        comma = "," if self._count else ""
        text = f"{comma}\n{json_text(task, indent=None)}"
        self._folder.append("tasks.json", text.encode("utf-8", "backslashreplace"))
        self._count += 1

    def finish(self) -> Path:
        """Put the folder under its name."""
        self._folder.append("tasks.json", b"\n]\n")
        return self._folder.finish()

    def discard(self) -> None:
        """Give up."""
        self._folder.discard()

    def _result(
        self, picture: LabelledPicture, row: int, crop: Crop, top_left: tuple[int, int]
    ) -> dict[str, Any]:
        height, width = picture.size_hw
        one = picture.objects[row]
        return {
            "id": f"{picture.id}-{row}",
            "type": "brushlabels",
            "from_name": "label",
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "score": one.score,
            "value": {
                "format": "rle",
                "rle": brush_rle(crop, top_left, picture.size_hw),
                "brushlabels": [self._data.categories[one.category]],
            },
        }


def _config(data: DataSet) -> str:
    labels = "".join(f"    <Label value={quoteattr(name)}/>\n" for name in data.categories)
    return (
        '<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
        f'  <BrushLabels name="label" toName="image">\n{labels}  </BrushLabels>\n</View>\n'
    )
