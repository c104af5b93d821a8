"""Labelled videos of a file: the phrases to ask of each, and the tracks that answer them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samforge.core.detections import Detections
from samforge.core.errors import ImageError, SamforgeError, SettingError
from samforge.core.images import RgbImage
from samforge.core.labelled import LabelledVideo, VideoQuestion
from samforge.core.masks import Masks
from samforge.core.native import Report, isolated
from samforge.core.paths import is_file
from samforge.formats.coco_data import check_name, drawn_phrases
from samforge.formats.video_file import TrackRecord, VideoFile, VideoRecord, video_file
from samforge.media import read_image

Asks = dict[str, tuple[TrackRecord, ...]]
"""Phrases and the tracks that answer them; none if absent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoData:
    """Labelled videos, whose frames are read when they are needed."""

    path: Path
    """The file."""
    folder: Path
    """Folder of the frames."""
    asked: tuple[tuple[VideoRecord, Asks], ...]
    """Every video and what is asked of it."""

    @property
    def phrases(self) -> frozenset[str]:
        """Everything that is asked."""
        return frozenset(phrase for _, asks in self.asked for phrase in asks)

    @property
    def frames(self) -> int:
        """Frames of all videos."""
        return sum(len(record.file_names) for record, _ in self.asked)

    def videos(self, *, report: Report | None = None) -> Iterator[LabelledVideo]:
        """Decode the tracks of one video after the other, in the order of the file.

        Frames are read one by one where the video is followed.

        Args:
            report: Takes every video that cannot be used, which is left out, and every phrase whose
                masks are damaged, which is not asked. None raises at the first.

        Raises:
            ImageError: A first frame cannot be read.
            SettingError: A segmentation is damaged.
        """
        for record, asks in self.asked:
            video = None
            with isolated(report, record.place):
                video = self._video(record, asks, report)
            if video is not None and video.questions:
                yield video

    def _video(self, record: VideoRecord, asks: Asks, report: Report | None) -> LabelledVideo:
        size_hw = record.size_hw
        if size_hw is None:
            first = read_image(self.folder / record.file_names[0])
            size_hw = (first.shape[0], first.shape[1])
        questions, next_id = [], 0
        shown: list[int] = []
        for phrase, tracks in asks.items():
            answer = None
            with isolated(report, tracks[0].place if tracks else phrase):
                answer = _tracked(phrase, tracks, len(record.file_names), size_hw, next_id)
            if answer is None:
                continue  # damaged: neither there nor absent
            next_id += len(tracks)
            questions.append(VideoQuestion(text=phrase, tracks=answer))
            first_ids = answer[0].ids
            shown += [] if first_ids is None else first_ids.tolist()
        folder = Path(record.file_names[0]).parent
        return LabelledVideo(
            # Frames of several videos may lie in one folder.
            name=str(folder) if folder.name else record.place,
            length=len(record.file_names),
            frames=lambda: self._frames(record, size_hw),
            questions=tuple(questions),
            shown=tuple(shown),
        )

    def _frames(self, record: VideoRecord, size_hw: tuple[int, int]) -> Iterator[RgbImage]:
        for name in record.file_names:
            rgb = read_image(self.folder / name)
            if rgb.shape[:2] != size_hw:
                raise ImageError(
                    f"{self.folder / name} is {rgb.shape[:2]} (H, W) when it is turned upright, "
                    f"{record.place} says {size_hw}. Give the frames that were labelled."
                )
            yield rgb


def video_data_from_file(
    path: Path,
    *,
    folder: Path | None = None,
    seed: int = 0,
    limit: int | None = None,
    report: Report | None = None,
) -> VideoData:
    """Read what a file of labelled videos asks, and make sure that its frames are there.

    Args:
        path: The file: YouTube-VIS, SA-Co/VEval or COCO-VID, with masks as polygons or RLE.
        folder: Where the frames are; None looks next to the file.
        seed: Changes which absent phrases are drawn, where the file names none.
        limit: Use the first videos only.
        report: Takes what is not usable, while the others are used. None raises at the first.

    Raises:
        SettingError: The file is not usable, or nothing is left to ask.
        ImageError: Frames are missing.
    """
    place = path.parent if folder is None else folder
    told: list[Exception] = []

    def remembering(item: str, error: Exception) -> None:
        told.append(error)
        if report is not None:
            report(item, error)

    taking = None if report is None else remembering
    file = video_file(path, report=taking)
    used = frozenset(file.phrases[one.category] for all_ in file.tracks.values() for one in all_)
    asked: list[tuple[VideoRecord, Asks]] = []
    for identity, record in file.videos.items():
        with isolated(taking, record.place):
            for name in record.file_names:
                check_name(name, path, "--videos")
            asks = _asks(identity, record, file, used, seed)
            if asks:
                asked.append((record, asks))
    found = _found(asked[:limit], place, path, taking)
    if not found and told:
        raise told[0]
    if not found:
        raise SettingError(f"{path} asks nothing: no video has a phrase, present or absent.")
    return VideoData(path=path, folder=place, asked=found)


def _asks(
    identity: Any, record: VideoRecord, file: VideoFile, used: frozenset[str], seed: int
) -> Asks:
    """The pairs that the file names, or what a video holds and as many absent phrases."""
    tracks = file.tracks.get(identity, ())
    if file.pairs is not None:
        return {
            phrase: own
            for category, phrase in file.pairs.get(identity, ())
            for own in [tuple(one for one in tracks if one.category == category)]
            if not any(one.crowd for one in own)
        }
    asks: Asks = {}
    for track in tracks:
        phrase = file.phrases[track.category]
        asks[phrase] = (*asks.get(phrase, ()), track)
    # A category of which only a part or a crowd is labelled is neither there nor absent.
    held = {*asks, *_named(record.partial, file.phrases)}
    whole = {
        phrase: own
        for phrase, own in asks.items()
        if phrase not in _named(record.partial, file.phrases) and not any(o.crowd for o in own)
    }
    federated = any(one.negative is not None for one in file.videos.values())
    absent = _named(record.negative or (), file.phrases) if federated else used
    name = record.file_names[0]
    return whole | dict.fromkeys(drawn_phrases(absent - held, len(whole), name, seed), ())


def _named(categories: tuple[Any, ...], phrases: Mapping[Any, str]) -> frozenset[str]:
    return frozenset(phrases[one] for one in categories if one in phrases)


def _found(
    asked: list[tuple[VideoRecord, Asks]], folder: Path, path: Path, report: Report | None
) -> tuple[tuple[VideoRecord, Asks], ...]:
    """Those whose frames are there; the others are told, and it ends where none is."""
    missing = {
        record.place: name
        for record, _ in asked
        for name in [next((n for n in record.file_names if not is_file(folder / n)), None)]
        if name is not None
    }
    if missing and (report is None or len(missing) == len(asked)):
        raise ImageError(
            f"Frames of {len(missing)} of the {len(asked)} videos of {path} are not in {folder}, "
            f"the first is {next(iter(missing.values()))}. Say where they are: --videos FOLDER."
        )
    for place, name in missing.items():
        with isolated(report, place):
            raise ImageError(f"{folder / name} does not exist. Say where it is: --videos FOLDER.")
    return tuple(one for one in asked if one[0].place not in missing)


def _tracked(
    phrase: str,
    tracks: tuple[TrackRecord, ...],
    length: int,
    size_hw: tuple[int, int],
    first_id: int,
) -> tuple[Detections, ...]:
    """The truth frame by frame."""
    return tuple(
        _frame(
            phrase,
            {
                number: (track, track.masks[frame])
                for number, track in enumerate(tracks, first_id)
                if frame in track.masks
            },
            size_hw,
        )
        for frame in range(length)
    )


def _frame(
    phrase: str, there: Mapping[int, tuple[TrackRecord, Any]], size_hw: tuple[int, int]
) -> Detections:
    masks = Masks.concatenate(
        [Masks.empty(size_hw), *(_mask(track, one, size_hw) for track, one in there.values())]
    )
    # Polygons thinner than a pixel are nowhere.
    seen = np.flatnonzero(masks.areas > 0)
    masks = masks[seen]
    return Detections(
        masks=masks,
        boxes_xyxy=masks.boxes.astype(np.float32),
        scores=np.ones(len(seen), np.float32),
        labels=(phrase,) * len(seen),
        size_hw=size_hw,
        ids=np.array(list(there), np.int64)[seen],
    )


def _mask(track: TrackRecord, segmentation: Any, size_hw: tuple[int, int]) -> Masks:
    try:
        return Masks.from_rle([segmentation], size_hw)
    except SamforgeError as error:
        raise SettingError(f"{track.place} is not usable: {error}") from error
