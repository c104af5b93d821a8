"""Reads a COCO file into plain records, and says where a broken one is broken."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samforge.core.errors import SettingError
from samforge.core.native import Report, isolated
from samforge.core.polygons import checked_polygon

_KEYS = ("images", "annotations", "categories")


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoImage:
    """One entry of ``images``: a picture, or in SA-Co files a picture with one phrase."""

    file_name: str
    """Relative to the folder of the images."""
    other_names: tuple[str, ...] = ()
    """Where else the picture may lie, if it is not there."""
    size_hw: tuple[int, int] | None
    """Height and width in pixels, where the file says so."""
    phrase: str | None
    """``text_input`` of SA-Co files; None in others, whose categories are the phrases."""
    exhaustive: bool
    """False where SA-Co's annotators did not mask every instance."""
    negative: tuple[Any, ...] | None
    """``neg_category_ids`` of LVIS files: categories that were looked for and are not there."""
    partial: tuple[Any, ...]
    """``not_exhaustive_category_ids`` of LVIS files: not every instance is masked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoAnnotation:
    """One entry of ``annotations``."""

    place: str
    """Where it stands, for messages: ``annotations[17] of val.json``."""
    category: Any
    """Its category's id."""
    segmentation: Any
    """RLE or polygons, not yet decoded."""
    crowd: bool
    """Whether it covers several instances at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CocoFile:
    """The records of one file."""

    images: Mapping[Any, CocoImage]
    """By id, in the file's order."""
    phrases: Mapping[Any, str]
    """Name of each category by its id, underscores as spaces."""
    annotations: Mapping[Any, tuple[CocoAnnotation, ...]]
    """By the image's id; an image without annotations is missing."""


def coco_file(path: Path, *, report: Report | None = None) -> CocoFile:
    """Read and check a COCO data set, without its pictures.

    Args:
        path: The file.
        report: Takes every record that is not usable, which is left out; of an annotation without
            a usable mask its category stays, as that of a crowd. None raises at the first.

    Raises:
        SettingError: There is no file, it is no COCO data set, or a record is not usable.
    """
    table = _table(path)
    images: dict[Any, CocoImage] = {}
    broken: set[Any] = set()  # ids of images that were told already, with all they hold
    for place, record in _records(table, "images", path, report):
        with isolated(report, place):
            identity = _needed(record, "id", place)
            if identity in images:
                raise SettingError(f"{place} has the id {identity!r} of an earlier image.")
            broken.add(identity)
            images[identity] = _image(record, place)
            broken.remove(identity)
    phrases: dict[Any, str] = {}
    for place, record in _records(table, "categories", path, report):
        with isolated(report, place):
            identity = _needed(record, "id", place)
            phrases[identity] = _phrase(_needed(record, "name", place), f"name of {place}")
    annotations: dict[Any, list[CocoAnnotation]] = {}
    for place, record in _records(table, "annotations", path, report):
        with isolated(report, place):
            image = _needed(record, "image_id", place)
            if image in broken:
                continue
            if image not in images:
                raise SettingError(
                    f"{place} belongs to the image {image!r}, which is not in images."
                )
            annotation = _annotation(record, place, report)
            if annotation.category not in phrases:
                raise SettingError(
                    f"{place} is of the category {annotation.category!r}, which is not in "
                    "categories."
                )
            annotations.setdefault(image, []).append(annotation)
    return CocoFile(
        images=images,
        phrases=phrases,
        annotations={image: tuple(found) for image, found in annotations.items()},
    )


def _table(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_bytes())
    except OSError as error:
        raise SettingError(
            f"The COCO file {path} cannot be read: {error.strerror} (looked in {Path.cwd()})."
        ) from error
    except (ValueError, RecursionError) as error:
        raise SettingError(f"The COCO file {path} is not valid JSON: {error}.") from error
    if isinstance(table, list):
        raise SettingError(
            f"{path} is a list, as COCO result files are. Give the data set that the results are "
            f"of: an object with {', '.join(_KEYS)}."
        )
    if not isinstance(table, dict) or not set(_KEYS) <= set(table):
        held = f"the keys {sorted(table)}" if isinstance(table, dict) else repr(table)
        raise SettingError(
            f"{path} is no COCO data set: it holds {held:.200}, and {', '.join(_KEYS)} are needed."
        )
    return table


def _records(
    table: Mapping[str, Any], key: str, path: Path, report: Report | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every record that is an object, with its place."""
    records = table[key]
    if not isinstance(records, list):
        raise SettingError(f"{key} of {path} is a list in COCO, got {records!r:.80}.")
    for index, record in enumerate(records):
        place = f"{key}[{index}] of {path}"
        if isinstance(record, dict):
            yield place, record
            continue
        with isolated(report, place):
            raise SettingError(f"{place} is an object in COCO, got {record!r:.80}.")


def _needed(record: Mapping[str, Any], key: str, place: str) -> Any:
    if key not in record:
        raise SettingError(f"{place} has no {key}, only {', '.join(sorted(record)) or 'nothing'}.")
    value = record[key]
    if key.endswith("id") and not isinstance(value, (int, str)):
        raise SettingError(f"{key} of {place} is a number or a text, got {value!r:.80}.")
    return value


def _phrase(value: object, place: str) -> str:
    phrase = " ".join(value.replace("_", " ").split()) if isinstance(value, str) else ""
    if not phrase:
        raise SettingError(f"The {place} is a text that says what to find, got {value!r:.80}.")
    return phrase


def _image(record: Mapping[str, Any], place: str) -> CocoImage:
    names = _names(record, place)
    size = (record.get("height"), record.get("width"))
    if any(not isinstance(side, int | None) or (side is not None and side < 1) for side in size):
        raise SettingError(f"height and width of {place} are pixels, got {size}.")
    height, width = size
    text = record.get("text_input")
    return CocoImage(
        file_name=names[0],
        other_names=names[1:],
        size_hw=None if height is None or width is None else (height, width),
        phrase=None if text is None else _phrase(text, f"text_input of {place}"),
        exhaustive=bool(record.get("is_instance_exhaustive", True)),
        negative=_ids(record, "neg_category_ids", place),
        partial=_ids(record, "not_exhaustive_category_ids", place) or (),
    )


def _names(record: Mapping[str, Any], place: str) -> tuple[str, ...]:
    """What the picture may be called: LVIS v1 has no ``file_name``, but ``coco_url``.

    Its pictures lie in COCO's folders, ``train2017`` and ``val2017``, or all in one.
    """
    if "file_name" not in record and isinstance(record.get("coco_url"), str):
        parts = [part for part in record["coco_url"].split("/") if part]
        if len(parts) >= 3:  # scheme, host and at least a name
            return "/".join(parts[-2:]), parts[-1]
    name = _needed(record, "file_name", place)
    if not isinstance(name, str) or not name:
        raise SettingError(f"file_name of {place} is a text, got {name!r:.80}.")
    return (name,)


def _ids(record: Mapping[str, Any], key: str, place: str) -> tuple[Any, ...] | None:
    ids = record.get(key)
    if ids is None:
        return None
    if not isinstance(ids, list) or not all(isinstance(one, (int, str)) for one in ids):
        raise SettingError(f"{key} of {place} is a list of category ids, got {ids!r:.80}.")
    return tuple(ids)


def _annotation(record: Mapping[str, Any], place: str, report: Report | None) -> CocoAnnotation:
    category = _needed(record, "category_id", place)
    segmentation = None
    with isolated(report, place):
        segmentation = _segmentation(record, place)
    return CocoAnnotation(
        place=place,
        category=category,
        segmentation=segmentation,
        # Without a mask the category is neither there as it should be nor absent: like a crowd.
        crowd=bool(record.get("iscrowd")) or segmentation is None,
    )


def _segmentation(record: Mapping[str, Any], place: str) -> Any:
    segmentation = record.get("segmentation")
    if not segmentation:
        raise SettingError(
            f"{place} has no segmentation, only {', '.join(sorted(record))}. Masks are compared: "
            "give a data set with polygons or RLE, not with boxes alone."
        )
    if isinstance(segmentation, list):
        for polygon in segmentation:
            _check_polygon(polygon, place)
    elif not isinstance(segmentation, dict):
        raise SettingError(
            f"segmentation of {place} is an RLE or a list of polygons, got {segmentation!r:.80}."
        )
    return segmentation


def _check_polygon(polygon: object, place: str) -> None:
    try:
        checked_polygon(polygon, "a polygon")
    except SettingError as error:
        raise SettingError(
            f"{place} has a polygon that is no list of x, y, x, y, x, y, …: {polygon!r:.80}."
        ) from error
