"""A COCO file that grows frame by frame, in the same memory however long the video is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from samforge.core.detections import Detections
from samforge.core.words import json_text
from samforge.formats._growing import GrowingFile


class CocoStream:
    """Writes detections of a video's frames as one COCO data set.

    Each frame is an image ``STEM/000017.png``, the name it would have in a folder of extracted
    frames, with its number ``frame`` and its time ``seconds``. The file appears under its name
    when it is finished.
    """

    def __init__(self, path: Path, video: Path, categories: Sequence[str]) -> None:
        """Begin a file.

        Args:
            path: Where to; its folder exists.
            video: What the frames are of.
            categories: Names of objects, numbered from 1.

        Raises:
            OutputError: The file cannot be written.
        """
        self._stem = video.stem
        self._ids = {name: number for number, name in enumerate(categories, 1)}
        self._images: list[tuple[int, float, tuple[int, int]]] = []  # index, seconds, size
        self._annotations = 0
        head = {"description": "samforge video", "video": video.name}
        self._file = GrowingFile(path)
        self._file.write(f'{{"info": {json.dumps(head)}, "annotations": [')

    def add(self, index: int, seconds: Fraction, detections: Detections) -> None:
        """Append the detections of one frame.

        Args:
            index: Number of the frame in the video, from 0.
            seconds: When it is shown.
            detections: What was found in it.

        Raises:
            OutputError: The disk is full.
        """
        image_id = len(self._images) + 1
        self._images.append((index, float(seconds), detections.size_hw))
        for one in detections.to_coco(image_id=image_id, category_ids=self._ids):
            self._annotations += 1
            comma = ",\n" if self._annotations > 1 else "\n"
            self._file.write(comma + json.dumps({"id": self._annotations, **one}))

    def finish(self) -> Path:
        """Finish the file and put it under its name.

        Raises:
            OutputError: The disk is full.
        """
        categories = [{"id": number, "name": name} for name, number in self._ids.items()]
        self._file.write('\n], "categories": ' + json_text(categories, indent=None))
        self._file.write(f', "videos": [{json.dumps({"id": 1, "name": self._stem})}]')
        self._file.write(', "images": [')
        for i in range(len(self._images)):
            self._file.write((",\n" if i else "\n") + json.dumps(self._image(i)))
        self._file.write("\n]}\n")
        return self._file.finish()

    def _image(self, number: int) -> dict[str, Any]:
        index, seconds, (height, width) = self._images[number]
        return {
            "id": number + 1,
            "file_name": f"{self._stem}/{index:06d}.png",
            "width": width,
            "height": height,
            "video_id": 1,
            "frame_index": index,
            "seconds": seconds,
        }

    def discard(self) -> None:
        """Give up: nothing is left behind."""
        self._file.discard()
