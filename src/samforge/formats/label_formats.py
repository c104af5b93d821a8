"""Every format that labels are written in, by its name on the command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from samforge.core.errors import SettingError
from samforge.formats.label_coco import CocoLabels
from samforge.formats.label_cvat import CvatLabels
from samforge.formats.label_labelme import LabelMeLabels
from samforge.formats.label_masks import ClassMasks, IdMasks
from samforge.formats.label_parquet import ParquetLabels
from samforge.formats.label_sa1b import Sa1bLabels
from samforge.formats.label_studio import LabelStudioLabels
from samforge.formats.label_yolo import YoloLabels
from samforge.formats.labels import DataSet, LabelWriter

_WRITERS: dict[str, tuple[str, Callable[[Path, DataSet], LabelWriter]]] = {
    "coco": ("coco.json", CocoLabels),
    "coco-polygons": (
        "coco-polygons.json",
        lambda path, data: CocoLabels(path, data, segmentations="polygons"),
    ),
    "yolo": ("yolo", YoloLabels),
    "parquet": ("parquet", ParquetLabels),
    "sa1b": ("sa1b", Sa1bLabels),
    "masks": ("masks", ClassMasks),
    "ids": ("ids", IdMasks),
    "labelstudio": ("labelstudio", LabelStudioLabels),
    "cvat": ("cvat.xml", CvatLabels),
    "labelme": ("labelme", LabelMeLabels),
}

LABEL_FORMATS = {name: file for name, (file, _) in _WRITERS.items()}
"""Formats by name, each with the file or folder that it becomes."""


def checked_formats(formats: Sequence[str]) -> tuple[str, ...]:
    """Each format once.

    Raises:
        SettingError: One is unknown, or there is none.
    """
    if unknown := [name for name in formats if name not in LABEL_FORMATS]:
        raise SettingError(
            f"There is no format {unknown[0]!r}. There are {', '.join(LABEL_FORMATS)}."
        )
    if not formats:
        raise SettingError(f"Give at least one format: {', '.join(LABEL_FORMATS)}.")
    return tuple(dict.fromkeys(formats))


def label_writer(name: str, out: Path, data: DataSet) -> LabelWriter:
    """Begin a data set in a format.

    Args:
        name: One of :data:`LABEL_FORMATS`.
        out: The folder that it goes to.
        data: What holds for all pictures.

    Raises:
        OutputError: It cannot be written.
        SettingError: The format cannot hold the classes.
        MissingExtra: What writes it is not installed.
    """
    file, make = _WRITERS[name]
    return make(out / file, data)
