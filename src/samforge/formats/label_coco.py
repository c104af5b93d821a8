"""Labels as one COCO file for the whole data set, in the same memory however long it is."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal

from samforge.core.files import output_errors
from samforge.core.words import json_text
from samforge.formats._growing import GrowingFile
from samforge.formats.labels import DataSet, LabelledPicture
from samforge.formats.outlines import polygons_from_crop

Segmentations = Literal["rle", "polygons"]


class CocoLabels:
    """Writes ``info``, ``categories``, ``annotations`` and ``images``, the latter two one a line.

    Masks are compressed RLE, or polygons. An object with a hole stays RLE among polygons: COCO's
    polygons have no holes, and readers take both in one file. The format:
    https://cocodataset.org/#format-data.
    """

    def __init__(self, path: Path, data: DataSet, *, segmentations: Segmentations = "rle") -> None:
        """Begin a file.

        Raises:
            OutputError: It cannot be written.
        """
        self._polygons = segmentations == "polygons"
        self._annotations = self._images = 0
        self._videos: dict[int, str] = {}
        info = {"description": "samforge label", **data.provenance}
        categories = [
            {"id": number, "name": name} for number, name in enumerate(data.categories, 1)
        ]
        self._file = GrowingFile(path)
        with output_errors(path):
            # The images wait here, for JSON has one list after the other.
            self._later = TemporaryFile("w+", encoding="utf-8", dir=path.parent)  # noqa: SIM115
        self._file.write(f'{{"info": {json_text(info, indent=None)},\n"categories": ')
        self._file.write(json_text(categories, indent=None) + ',\n"annotations": [')

    def add(self, picture: LabelledPicture) -> None:
        """Append a picture."""
        height, width = picture.size_hw
        entry: dict[str, Any] = {
            "id": picture.id,
            "file_name": picture.name,
            "width": width,
            "height": height,
            "sha256": picture.sha256,
        }
        if picture.frame is not None:
            self._videos[picture.frame.video_id] = picture.frame.video
            entry |= {"video_id": picture.frame.video_id, "frame_index": picture.frame.index}
        with output_errors(self._file.path):
            self._later.write(("," if self._images else "") + "\n")
            self._later.write(json_text(entry, indent=None))
        self._images += 1
        masks = picture.masks() if self._polygons and picture.objects else None
        for row, one in enumerate(picture.objects):
            segmentation: Any = {"size": [height, width], "counts": one.counts}
            if masks is not None:
                segmentation = polygons_from_crop(*masks.crop(row)).as_coco() or segmentation
            self._file.write(",\n" if self._annotations else "\n")
            self._annotations += 1
            self._file.write(json.dumps(_annotation(picture, row, segmentation)))

    def finish(self) -> Path:
        """Put the file under its name."""
        self._file.write('\n],\n"images": [')
        with output_errors(self._file.path):
            self._later.seek(0)
            while piece := self._later.read(1 << 20):
                self._file.write(piece)
            self._later.close()
        self._file.write("\n]")
        if self._videos:
            # As TAO and COCO-VID name them: images of frames point here.
            videos = [{"id": number, "name": name} for number, name in self._videos.items()]
            self._file.write(',\n"videos": ' + json_text(videos, indent=None))
        self._file.write("}\n")
        return self._file.finish()

    def discard(self) -> None:
        """Give up."""
        with suppress(OSError):  # what could not be written is given up
            self._later.close()
        self._file.discard()


def _annotation(picture: LabelledPicture, row: int, segmentation: Any) -> dict[str, Any]:
    one = picture.objects[row]
    entry = {
        "id": picture.object_id(row),
        "image_id": picture.id,
        "category_id": one.category + 1,
        "segmentation": segmentation,
        "bbox": list(one.bbox),
        "area": one.area,
        "iscrowd": 0,
        "score": one.score,
        "phrase": one.phrase,
    }
    if picture.frame is not None:
        entry["video_id"] = picture.frame.video_id
    return entry if one.track_id is None else entry | {"track_id": one.track_id}
