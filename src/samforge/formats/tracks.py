"""Tracks of a video as files: JSON lines, MOTChallenge, YouTube-VIS.

All three grow frame by frame and appear under their names when they are finished. JSON lines are in
order and can be read as they come; YouTube-VIS holds a whole track in one place, so its runs are
kept in memory: some hundred bytes for an object and frame.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

from samforge.core.detections import Detections
from samforge.core.errors import SettingError
from samforge.formats._growing import GrowingFile

JSON_LINES, MOT, YOUTUBE_VIS = ".jsonl", ".txt", ".json"
TRACK_SUFFIXES = (JSON_LINES, MOT, YOUTUBE_VIS)
"""Endings of the three kinds of files."""


class _Form(Protocol):
    """One kind of file."""

    def frame(self, index: int, seconds: Fraction, found: Detections) -> str:
        """What a frame adds."""
        ...

    def end(self) -> str:
        """What comes last."""
        ...


class TrackWriter:
    """Writes tracks of one video into one file."""

    def __init__(self, path: Path, video: Path) -> None:
        """Begin a file.

        Args:
            path: Where to; its folder exists. It ends in one of :data:`TRACK_SUFFIXES`.
            video: What the frames are of.

        Raises:
            SettingError: The ending is none of these.
            OutputError: The file cannot be written.
        """
        forms: dict[str, Callable[[Path], _Form]] = {
            JSON_LINES: JsonLines,
            MOT: Mot,
            YOUTUBE_VIS: YoutubeVis,
        }
        suffix = path.suffix.lower()
        if suffix not in forms:
            raise SettingError(
                f"Tracks are written as {JSON_LINES} (JSON lines), {MOT} (MOTChallenge) or "
                f"{YOUTUBE_VIS} (YouTube-VIS), got {path.name}."
            )
        self._form, self._file = forms[suffix](video), GrowingFile(path)

    def add(self, index: int, seconds: Fraction, found: Detections) -> None:
        """Append a frame.

        Args:
            index: Number of the frame in the video, from 0.
            seconds: When it is shown.
            found: Objects with their ids.

        Raises:
            SettingError: They have none.
            OutputError: The disk is full.
        """
        if found.ids is None:
            raise SettingError("Tracks are of objects with ids, and these detections have none.")
        self._file.write(self._form.frame(index, seconds, found))

    def finish(self) -> Path:
        """Finish the file and put it under its name.

        Raises:
            OutputError: The disk is full.
        """
        self._file.write(self._form.end())
        return self._file.finish()

    def discard(self) -> None:
        """Give up: nothing is left behind."""
        self._file.discard()


class JsonLines:
    """One line a frame: number, seconds, size, and its objects with ids and runs."""

    def __init__(self, video: Path) -> None:
        """Lines name no video."""

    def frame(self, index: int, seconds: Fraction, found: Detections) -> str:
        """A line."""
        height, width = found.size_hw
        line = {
            "frame": index,
            "seconds": round(float(seconds), 6),
            "height": height,
            "width": width,
            "objects": [
                {
                    "id": number,
                    "label": found.labels[row],
                    "score": round(float(found.scores[row]), 6),
                    "box_xyxy": [round(edge, 2) for edge in found.boxes_xyxy[row].tolist()],
                    "segmentation": found.masks.rle(row),
                }
                for row, number in enumerate(_ids(found))
            ],
        }
        return json.dumps(line) + "\n"

    def end(self) -> str:
        """Nothing."""
        return ""


class Mot:
    """One line an object and frame, as MOTChallenge has results.

    ``frame, id, left, top, width, height, score, -1, -1, -1``; frames and ids count from 1. Source:
    https://motchallenge.net/instructions.
    """

    def __init__(self, video: Path) -> None:
        """Lines name no video."""

    def frame(self, index: int, seconds: Fraction, found: Detections) -> str:  # noqa: ARG002
        """A line for each object."""
        lines = []
        for row, number in enumerate(_ids(found)):
            left, top, right, bottom = found.boxes_xyxy[row].tolist()
            box = f"{left:.2f},{top:.2f},{right - left:.2f},{bottom - top:.2f}"
            lines.append(f"{index + 1},{number + 1},{box},{found.scores[row]:.4f},-1,-1,-1\n")
        return "".join(lines)

    def end(self) -> str:
        """Nothing."""
        return ""


class YoutubeVis:
    """One annotation an object, with a mask or null for every frame.

    Source: https://youtube-vos.org/dataset/vis, whose results also have ``score``.
    """

    def __init__(self, video: Path) -> None:
        self._video = video
        self._frames: list[int] = []
        self._size: tuple[int, int] = (0, 0)
        self._categories: dict[str, int] = {}
        self._tracks: dict[int, dict[str, Any]] = {}

    def frame(self, index: int, seconds: Fraction, found: Detections) -> str:  # noqa: ARG002
        """Remember the objects."""
        place = len(self._frames)
        self._frames.append(index)
        self._size = found.size_hw
        for label in (*found.best_scores, *found.labels):
            self._categories.setdefault(label, len(self._categories) + 1)
        for row, number in enumerate(_ids(found)):
            track = self._tracks.setdefault(
                number, {"label": found.labels[row], "score": 0.0, "seen": {}}
            )
            track["score"] = max(track["score"], float(found.scores[row]))
            left, top, right, bottom = found.boxes_xyxy[row].tolist()
            box = [round(edge, 2) for edge in (left, top, right - left, bottom - top)]
            track["seen"][place] = (found.masks.rle(row), box, int(found.areas[row]))
        return ""

    def end(self) -> str:
        """The whole file."""
        height, width = self._size
        video = {
            "id": 1,
            "width": width,
            "height": height,
            "length": len(self._frames),
            "file_names": [f"{self._video.stem}/{index:06d}.png" for index in self._frames],
        }
        places = range(len(self._frames))
        annotations = []
        for number, track in sorted(self._tracks.items()):
            seen = [track["seen"].get(place, (None, None, None)) for place in places]
            annotations.append(
                {
                    "id": number + 1,
                    "video_id": 1,
                    "category_id": self._categories[track["label"]],
                    "score": round(track["score"], 6),
                    "iscrowd": 0,
                    "segmentations": [mask for mask, _, _ in seen],
                    "bboxes": [box for _, box, _ in seen],
                    "areas": [area for _, _, area in seen],
                }
            )
        categories = [{"id": number, "name": name} for name, number in self._categories.items()]
        whole = {
            "info": {"description": "samforge video", "video": self._video.name},
            "videos": [video],
            "categories": categories,
            "annotations": annotations,
        }
        return json.dumps(whole) + "\n"


def _ids(found: Detections) -> list[int]:
    return [] if found.ids is None else found.ids.tolist()
