"""OGC GeoPackage, in the raster's own reference system."""

from __future__ import annotations

import secrets
import shutil
import sqlite3
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from samforge.core.errors import OutputError
from samforge.core.files import output_errors
from samforge.core.words import json_text
from samforge.formats.geo_features import FIELDS, GeoFeature, GeoLayer

_TYPES = {int: np.int64, float: np.float64, str: np.object_}
_BATCH = 1000


class GeoPackageWriter:
    """One layer of MultiPolygons, with its description in the file's own table of contents."""

    def __init__(self, path: Path, layer: GeoLayer) -> None:
        """Begin a file; see :func:`samforge.formats.geo_writer`."""
        import pyogrio.raw

        self._write = pyogrio.raw.write
        self._path, self._layer = path, layer
        # A folder of its own: SQLite writes journals beside its file.
        self._folder = path.absolute().with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        with output_errors(path):
            self._folder.mkdir()
        self._file = self._folder / path.name
        self._waiting: list[GeoFeature] = []
        try:
            self._flush()  # a table with its columns, even where nothing comes
        except BaseException:
            self.discard()
            raise

    def add(self, features: Sequence[GeoFeature]) -> None:
        """Append objects."""
        self._waiting += features
        if len(self._waiting) >= _BATCH:
            self._flush()

    def finish(self, report: Mapping[str, Any]) -> Path:
        """Finish the file and put it under its name."""
        if self._waiting:
            self._flush()
        about = {**self._layer.about, "report": report}
        with output_errors(self._path):
            try:
                with closing(sqlite3.connect(self._file)) as database, database:
                    database.execute(
                        "UPDATE gpkg_contents SET description = ?",
                        (f"samforge {self._layer.name} {json_text(about, indent=None)}",),
                    )
            except sqlite3.Error as error:
                raise OutputError(f"{self._path} cannot be written: {error}.") from error
            self._file.replace(self._path)
        self.discard()
        return self._path

    def discard(self) -> None:
        """Give up: nothing is left behind."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _flush(self) -> None:
        from pyogrio.errors import DataSourceError
        from shapely import to_wkb

        geometries = np.array([to_wkb(one.geometry) for one in self._waiting], np.object_)
        columns = list(zip(*(one.values() for one in self._waiting), strict=True))
        data: list[Any] = [
            np.array(columns[place] if columns else (), _TYPES[kind])
            for place, kind in enumerate(FIELDS.values())
        ]
        with output_errors(self._path), warnings.catch_warnings():
            # A picture lies nowhere: that it has no reference system is no mistake.
            warnings.filterwarnings("ignore", "'crs' was not provided", UserWarning)
            try:
                self._write(
                    self._file,
                    geometry=geometries,
                    field_data=data,
                    # GeoPackage keeps the number of a row under a name of its own.
                    fields=np.array([_column(name) for name in FIELDS], np.object_),
                    layer=self._layer.name,
                    driver="GPKG",
                    geometry_type="MultiPolygon",
                    promote_to_multi=True,
                    crs=self._layer.crs,
                    append=self._file.exists(),
                )
            except DataSourceError as error:
                raise OutputError(f"{self._path} cannot be written: {error}.") from error
        self._waiting = []


def _column(name: str) -> str:
    return "object" if name == "id" else name
