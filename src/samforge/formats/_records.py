"""Records of COCO's files, of images and of videos, and where a broken one is broken."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from samforge.core.errors import SettingError
from samforge.core.native import Report, isolated
from samforge.core.polygons import checked_polygon


def table_from_file(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """Read a file that is an object with some keys.

    Raises:
        SettingError: There is no file, or it is something else.
    """
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
            f"of: an object with {', '.join(keys)}."
        )
    if not isinstance(table, dict) or not set(keys) <= set(table):
        held = f"the keys {sorted(table)}" if isinstance(table, dict) else repr(table)
        videos = isinstance(table, dict) and "videos" in table and "videos" not in keys
        raise SettingError(
            f"{path} is no COCO data set: it holds {held:.200}, and {', '.join(keys)} are needed."
            + (" It labels videos: give it as videos:FILE.json." if videos else "")
        )
    return table


def records(
    table: Mapping[str, Any], key: str, path: Path, report: Report | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every record of a list that is an object, with its place.

    Raises:
        SettingError: It is no list, or a record is no object and nobody takes it.
    """
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


def needed(record: Mapping[str, Any], key: str, place: str) -> Any:
    """A value that a record must have; ids are numbers or texts.

    Raises:
        SettingError: It has none.
    """
    if key not in record:
        raise SettingError(f"{place} has no {key}, only {', '.join(sorted(record)) or 'nothing'}.")
    value = record[key]
    if key.endswith("id") and not isinstance(value, (int, str)):
        raise SettingError(f"{key} of {place} is a number or a text, got {value!r:.80}.")
    return value


def phrases_from(
    table: Mapping[str, Any], path: Path, report: Report | None
) -> dict[int | str, str]:
    """Names of the categories by their ids.

    Raises:
        SettingError: A category has no id or no name, or the id of an earlier one.
    """
    phrases: dict[int | str, str] = {}
    for place, record in records(table, "categories", path, report):
        with isolated(report, place):
            identity = needed(record, "id", place)
            name = phrase_from(needed(record, "name", place), f"name of {place}")
            if phrases.setdefault(identity, name) != name:
                raise SettingError(
                    f"{place}, {name!r:.80}, has the id {identity!r} of an earlier category, "
                    f"{phrases[identity]!r:.80}."
                )
    return phrases


def phrase_from(value: object, place: str) -> str:
    """A name as a phrase, underscores as spaces.

    Raises:
        SettingError: It is no text.
    """
    phrase = " ".join(value.replace("_", " ").split()) if isinstance(value, str) else ""
    if not phrase:
        raise SettingError(f"The {place} is a text that says what to find, got {value!r:.80}.")
    return phrase


def ids_from(record: Mapping[str, Any], key: str, place: str) -> tuple[Any, ...] | None:
    """A list of ids; None where there is none.

    Raises:
        SettingError: It is something else.
    """
    ids = record.get(key)
    if ids is None:
        return None
    if not isinstance(ids, list) or not all(isinstance(one, (int, str)) for one in ids):
        raise SettingError(f"{key} of {place} is a list of category ids, got {ids!r:.80}.")
    return tuple(ids)


def size_from(record: Mapping[str, Any], place: str) -> tuple[int, int] | None:
    """Height and width in pixels; None where a record does not tell them.

    Raises:
        SettingError: They are no pixels.
    """
    size = (record.get("height"), record.get("width"))
    if any(not isinstance(side, int | None) or (side is not None and side < 1) for side in size):
        raise SettingError(f"height and width of {place} are pixels, got {size}.")
    height, width = size
    return None if height is None or width is None else (height, width)


def segmentation_from(record: Mapping[str, Any], place: str) -> Any:
    """The mask of a record, not yet decoded.

    Raises:
        SettingError: There is none, or it is neither RLE nor polygons.
    """
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
