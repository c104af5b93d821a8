"""Labels in the layout of SA-1B: one JSON file a picture, masks as RLE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samforge.core.words import json_text
from samforge.formats._growing_folder import GrowingFolder
from samforge.formats.labels import DataSet, LabelledObject, LabelledPicture, UniqueStems


class Sa1bLabels:
    """Writes ``NAME.json`` for each picture, as SA-1B has them, with the class beside it.

    SAM 3 expects no IoU of what a phrase finds and has no stability score: ``predicted_iou`` is the
    object's score, and ``stability_score`` is null. The layout:
    https://ai.meta.com/datasets/segment-anything-downloads/.
    """

    def __init__(self, path: Path, data: DataSet) -> None:
        """Begin a folder.

        Raises:
            OutputError: It cannot be written.
        """
        self._data, self._folder, self._stems = data, GrowingFolder(path), UniqueStems()
        about = {"description": "samforge label", **data.provenance}
        text = json_text({"info": about}) + "\n"
        self._folder.write("provenance.json", text.encode("utf-8", "backslashreplace"))
        self._stems.stem("provenance.json")

    def add(self, picture: LabelledPicture) -> None:
        """Append a picture."""
        height, width = picture.size_hw
        image: dict[str, Any] = {
            "image_id": picture.id,
            "width": width,
            "height": height,
            "file_name": picture.name,
        }
        if picture.frame is not None:
            image |= {"video_id": picture.frame.video_id, "frame_index": picture.frame.index}
        annotations = [
            self._annotation(picture, row, one) for row, one in enumerate(picture.objects)
        ]
        text = json_text({"image": image, "annotations": annotations}, indent=None) + "\n"
        name = f"{self._stems.stem(picture.name)}.json"
        self._folder.write(name, text.encode("utf-8", "backslashreplace"))

    def finish(self) -> Path:
        """Put the folder under its name."""
        return self._folder.finish()

    def discard(self) -> None:
        """Give up."""
        self._folder.discard()

    def _annotation(
        self, picture: LabelledPicture, row: int, one: LabelledObject
    ) -> dict[str, Any]:
        height, width = picture.size_hw
        left, top, wide, high = one.bbox
        return {
            "id": picture.object_id(row),
            "segmentation": {"size": [height, width], "counts": one.counts},
            "bbox": [left, top, wide, high],
            "area": one.area,
            "predicted_iou": one.score,
            "stability_score": None,
            "crop_box": [0, 0, width, height],
            "point_coords": [],
            "category": self._data.categories[one.category],
            "phrase": one.phrase,
        }
