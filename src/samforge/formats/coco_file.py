"""Reads a COCO file into plain records, and says where a broken one is broken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
    table = table_from_file(path, _KEYS)
    images: dict[Any, CocoImage] = {}
    broken: set[Any] = set()  # ids of images that were told already, with all they hold
    for place, record in records(table, "images", path, report):
        with isolated(report, place):
            identity = needed(record, "id", place)
            if identity in images:
                raise SettingError(f"{place} has the id {identity!r} of an earlier image.")
            broken.add(identity)
            images[identity] = _image(record, place)
            broken.remove(identity)
    phrases = phrases_from(table, path, report)
    annotations: dict[Any, list[CocoAnnotation]] = {}
    for place, record in records(table, "annotations", path, report):
        with isolated(report, place):
            image = needed(record, "image_id", place)
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


def _image(record: Mapping[str, Any], place: str) -> CocoImage:
    names = _names(record, place)
    text = record.get("text_input")
    return CocoImage(
        file_name=names[0],
        other_names=names[1:],
        size_hw=size_from(record, place),
        phrase=None if text is None else phrase_from(text, f"text_input of {place}"),
        exhaustive=bool(record.get("is_instance_exhaustive", True)),
        negative=ids_from(record, "neg_category_ids", place),
        partial=ids_from(record, "not_exhaustive_category_ids", place) or (),
    )


def _names(record: Mapping[str, Any], place: str) -> tuple[str, ...]:
    """What the picture may be called: LVIS v1 has no ``file_name``, but ``coco_url``.

    Its pictures lie in COCO's folders, ``train2017`` and ``val2017``, or all in one.
    """
    if "file_name" not in record and isinstance(record.get("coco_url"), str):
        parts = [part for part in record["coco_url"].split("/") if part]
        if len(parts) >= 3:  # scheme, host and at least a name
            return "/".join(parts[-2:]), parts[-1]
    name = needed(record, "file_name", place)
    if not isinstance(name, str) or not name:
        raise SettingError(f"file_name of {place} is a text, got {name!r:.80}.")
    return (name,)


def _annotation(record: Mapping[str, Any], place: str, report: Report | None) -> CocoAnnotation:
    category = needed(record, "category_id", place)
    segmentation = None
    with isolated(report, place):
        segmentation = segmentation_from(record, place)
    return CocoAnnotation(
        place=place,
        category=category,
        segmentation=segmentation,
        # Without a mask the category is neither there as it should be nor absent: like a crowd.
        crowd=bool(record.get("iscrowd")) or segmentation is None,
    )
