"""Reads labelled videos into plain records: YouTube-VIS, SA-Co/VEval and COCO-VID.

YouTube-VIS (https://youtube-vos.org/dataset/vis) has an annotation for each track, with a mask or
null for every frame. SA-Co/VEval is the same with ``video_np_pairs``, the phrases to ask of each
video, those that are absent among them (``scripts/eval/veval/README.md`` of facebookresearch/sam3).
COCO-VID, as MMTracking and TAO write it, has an image for each frame and an annotation for each
mask; ``instance_id`` or ``track_id`` joins them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samforge.core.errors import SettingError
from samforge.core.native import Report, isolated
from samforge.formats._records import (
    ids_from,
    needed,
    phrase_from,
    phrases_from,
    records,
    segmentation_from,
    size_from,
    table_from_file,
)

_KEYS = ("videos", "annotations", "categories")
_PAIRS = "video_np_pairs"
_TRACK_KEYS = ("instance_id", "track_id")
_FRAME_KEYS = ("frame_id", "frame_index")


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoRecord:
    """One entry of ``videos``."""

    place: str
    """Where it stands, for messages: ``videos[3] of val.json``."""
    file_names: tuple[str, ...]
    """Its frames in order, relative to the folder of all videos."""
    size_hw: tuple[int, int] | None
    """Height and width in pixels, where the file says so."""
    negative: tuple[Any, ...] | None
    """``neg_category_ids``: categories that were looked for and are not there."""
    partial: tuple[Any, ...]
    """``not_exhaustive_category_ids``: not every object is labelled."""


@dataclass(kw_only=True, slots=True)
class TrackRecord:
    """One object through a video."""

    place: str
    """Where it stands, for messages."""
    category: Any
    """Its category's id."""
    crowd: bool
    """Whether it covers several objects at once, or nobody knows where it is."""
    masks: dict[int, Any] = field(default_factory=dict)
    """RLE or polygons by frame, not yet decoded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoFile:
    """The records of one file."""

    videos: Mapping[Any, VideoRecord]
    """By id, in the file's order."""
    phrases: Mapping[Any, str]
    """Name of each category by its id, underscores as spaces."""
    tracks: Mapping[Any, tuple[TrackRecord, ...]]
    """By the video's id; a video without tracks is missing."""
    pairs: Mapping[Any, tuple[tuple[Any, str], ...]] | None
    """Categories and phrases to ask of each video; None where the file does not say."""


def video_file(path: Path, *, report: Report | None = None) -> VideoFile:
    """Read and check labelled videos, without their frames.

    Args:
        path: The file.
        report: Takes every record that is not usable, which is left out. None raises at the first.

    Raises:
        SettingError: There is no file, it labels no videos, or a record is not usable.
    """
    table = table_from_file(path, _KEYS)
    phrases = phrases_from(table, path, report)
    frames = _frames(table, path, report) if "images" in table else None
    videos: dict[Any, VideoRecord] = {}
    for place, record in records(table, "videos", path, report):
        with isolated(report, place):
            identity = needed(record, "id", place)
            if identity in videos:
                raise SettingError(f"{place} has the id {identity!r} of an earlier video.")
            own = None if frames is None else tuple(frames.names.get(identity, ()))
            videos[identity] = _video(record, place, own)
    return VideoFile(
        videos=videos,
        phrases=phrases,
        tracks=_tracks(table, path, videos, phrases, frames, report),
        pairs=_pairs(table, path, videos, phrases, report) if _PAIRS in table else None,
    )


@dataclass(kw_only=True, slots=True)
class _Frames:
    """Frames of COCO-VID."""

    names: dict[Any, list[str]] = field(default_factory=dict)
    """By video, in order."""
    places: dict[Any, tuple[Any, int]] = field(default_factory=dict)
    """Video and position, by the image's id."""


def _frames(table: Mapping[str, Any], path: Path, report: Report | None) -> _Frames:
    """Frames of every video in the order of their numbers."""
    found: dict[Any, list[tuple[int, str, Any]]] = {}
    for place, record in records(table, "images", path, report):
        with isolated(report, place):
            number = next((record[key] for key in _FRAME_KEYS if key in record), None)
            if not isinstance(number, int):
                raise SettingError(
                    f"{place} has no number of its frame: {' or '.join(_FRAME_KEYS)} is a whole "
                    f"number, got {number!r:.80}."
                )
            one = (number, _name(needed(record, "file_name", place), place))
            found.setdefault(needed(record, "video_id", place), []).append(
                (*one, needed(record, "id", place))
            )
    frames = _Frames()
    for video, images in found.items():
        images.sort(key=lambda one: one[0])
        frames.names[video] = [name for _, name, _ in images]
        frames.places |= {image: (video, at) for at, (_, _, image) in enumerate(images)}
    return frames


def _video(record: Mapping[str, Any], place: str, own: tuple[str, ...] | None) -> VideoRecord:
    names = own
    if names is None:
        listed = needed(record, "file_names", place)
        if not isinstance(listed, list):
            raise SettingError(f"file_names of {place} is a list of frames, got {listed!r:.80}.")
        names = tuple(_name(one, place) for one in listed)
    if not names:
        raise SettingError(f"{place} has no frames.")
    length = record.get("length", len(names))
    if own is None and length != len(names):
        raise SettingError(
            f"{place} has {len(names)} file_names and the length {length!r:.80}. Give as many."
        )
    return VideoRecord(
        place=place,
        file_names=names,
        size_hw=size_from(record, place),
        negative=ids_from(record, "neg_category_ids", place),
        partial=ids_from(record, "not_exhaustive_category_ids", place) or (),
    )


def _name(value: object, place: str) -> str:
    if not isinstance(value, str) or not value:
        raise SettingError(f"The name of a frame of {place} is a text, got {value!r:.80}.")
    return value


def _tracks(
    table: Mapping[str, Any],
    path: Path,
    videos: Mapping[Any, VideoRecord],
    phrases: Mapping[Any, str],
    frames: _Frames | None,
    report: Report | None,
) -> dict[Any, tuple[TrackRecord, ...]]:
    """Tracks of every video, those of COCO-VID joined from their masks."""
    found: dict[Any, dict[Any, TrackRecord]] = {}
    for place, record in records(table, "annotations", path, report):
        with isolated(report, place):
            category = needed(record, "category_id", place)
            if category not in phrases:
                raise SettingError(
                    f"{place} is of the category {category!r}, which is not in categories."
                )
            video, at = _where(record, place, frames)
            if video not in videos:
                raise SettingError(
                    f"{place} belongs to the video {video!r}, which is not in videos, or is broken."
                )
            own = found.setdefault(video, {})
            if at is None:
                _add_track(own, record, place, len(videos[video].file_names))
            else:
                _add_mask(own, record, place, at)
    return {video: tuple(own.values()) for video, own in found.items()}


def _where(record: Mapping[str, Any], place: str, frames: _Frames | None) -> tuple[Any, int | None]:
    """The video, and of COCO-VID the frame."""
    if frames is None:
        return needed(record, "video_id", place), None
    image = needed(record, "image_id", place)
    if image not in frames.places:
        raise SettingError(f"{place} belongs to the image {image!r}, which is not in images.")
    return frames.places[image]


def _add_track(
    own: dict[Any, TrackRecord], record: Mapping[str, Any], place: str, length: int
) -> None:
    # Until its masks prove usable, nobody knows where it is.
    track = TrackRecord(place=place, category=record["category_id"], crowd=True)
    own[len(own)] = track
    listed = needed(record, "segmentations", place)
    if not isinstance(listed, list) or len(listed) != length:
        count = f"{len(listed)} of them" if isinstance(listed, list) else f"{listed!r:.80}"
        raise SettingError(
            f"segmentations of {place} is a list with a mask or null for each of {length} frames, "
            f"got {count}."
        )
    for frame, one in enumerate(listed):
        if one:
            track.masks[frame] = segmentation_from({"segmentation": one}, f"{place}, frame {frame}")
    track.crowd = bool(record.get("iscrowd"))


def _add_mask(
    own: dict[Any, TrackRecord], record: Mapping[str, Any], place: str, frame: int
) -> None:
    key = next((one for one in _TRACK_KEYS if one in record), _TRACK_KEYS[0])
    number, category = needed(record, key, place), record["category_id"]
    track = own.setdefault(number, TrackRecord(place=place, category=category, crowd=False))
    known = not track.crowd
    track.crowd = True
    if track.category != category:
        raise SettingError(
            f"{place} is of the category {category!r}, and its track {number!r} of "
            f"{track.category!r} before."
        )
    if frame in track.masks:
        raise SettingError(f"{place} is a second mask of the track {number!r} on its frame.")
    track.masks[frame] = segmentation_from(record, place)
    track.crowd = not known or bool(record.get("iscrowd"))


def _pairs(
    table: Mapping[str, Any],
    path: Path,
    videos: Mapping[Any, VideoRecord],
    phrases: Mapping[Any, str],
    report: Report | None,
) -> dict[Any, tuple[tuple[Any, str], ...]]:
    """What SA-Co/VEval asks of each video."""
    found: dict[Any, dict[Any, str]] = {}
    for place, record in records(table, _PAIRS, path, report):
        with isolated(report, place):
            video, category = (
                needed(record, "video_id", place),
                needed(record, "category_id", place),
            )
            if video not in videos:
                raise SettingError(
                    f"{place} belongs to the video {video!r}, which is not in videos, or is broken."
                )
            phrase = record.get("noun_phrase", phrases.get(category))
            found.setdefault(video, {})[category] = phrase_from(phrase, f"noun_phrase of {place}")
    return {video: tuple(own.items()) for video, own in found.items()}
