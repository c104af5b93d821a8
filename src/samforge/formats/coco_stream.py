"""A COCO file that grows frame by frame, in the same memory however long the video is."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from samforge.core.detections import Detections
from samforge.core.files import output_errors
from samforge.core.words import json_text


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
            categories: The phrases, numbered from 1.

        Raises:
            OutputError: The file cannot be written.
        """
        self._path, self._stem = path, video.stem
        self._ids = {name: number for number, name in enumerate(categories, 1)}
        self._images: list[tuple[int, float, tuple[int, int]]] = []  # index, seconds, size
        self._annotations = 0
        self._temporary = path.absolute().with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        head = {"description": "samforge video", "video": video.name}
        with output_errors(path):
            self._file = self._temporary.open("x", encoding="utf-8")
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
        with output_errors(self._path):
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
        with output_errors(self._path):
            self._file.write('\n], "categories": ')
            self._file.write(json_text(categories, indent=None))
            self._file.write(', "images": [')
            for i in range(len(self._images)):
                self._file.write((",\n" if i else "\n") + json.dumps(self._image(i)))
            self._file.write("\n]}\n")
            self._file.close()
            self._temporary.replace(self._path)
        return self._path

    def _image(self, number: int) -> dict[str, Any]:
        index, seconds, (height, width) = self._images[number]
        return {
            "id": number + 1,
            "file_name": f"{self._stem}/{index:06d}.png",
            "width": width,
            "height": height,
            "frame": index,
            "seconds": seconds,
        }

    def discard(self) -> None:
        """Give up: nothing is left behind."""
        self._temporary.unlink(missing_ok=True)
        try:
            self._file.close()
        except OSError:
            return  # what could not be written belonged to a file that is gone
