"""Every format that labels are written in, by its name on the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from samforge.formats.label_coco import CocoLabels
from samforge.formats.labels import DataSet, LabelWriter

_WRITERS: dict[str, tuple[str, Callable[[Path, DataSet], LabelWriter]]] = {
    "coco": ("coco.json", CocoLabels),
    "coco-polygons": (
        "coco-polygons.json",
        lambda path, data: CocoLabels(path, data, segmentations="polygons"),
    ),
}

LABEL_FORMATS = {name: file for name, (file, _) in _WRITERS.items()}
"""Formats by name, each with the file or folder that it becomes."""


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
