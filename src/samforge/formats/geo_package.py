"""OGC GeoPackage, in the raster's own reference system."""

from __future__ import annotations

import shutil
import sqlite3
import warnings
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from samforge.core.errors import OutputError
from samforge.core.placing import place_file
from samforge.formats._geo_rows import GeoRows
from samforge.formats.geo_features import FIELDS, GeoFeature, GeoLayer

_TYPES = {int: np.int64, float: np.float64, str: np.object_}
_BATCH = 1000


class GeoPackageWriter(GeoRows):
    """One layer of MultiPolygons, with its description in the file's own table of contents."""

    def __init__(self, path: Path, layer: GeoLayer) -> None:
        """Begin a file; see :func:`samforge.formats.geo_writer`."""
        import pyogrio.raw

        super().__init__(path, layer, batch=_BATCH)
        self._write = pyogrio.raw.write
        self._count = 0
        # A folder of its own: SQLite writes journals beside its file.
        self._file = self.part / path.name
        with self._errors():
            self.part.mkdir()
        try:
            self._flush(self._write_rows)  # a table with its columns, even where nothing comes
        except BaseException:
            self.discard()
            raise

    def finish(self, report: Mapping[str, Any]) -> Path:
        """Finish the file and put it under its name."""
        if self._waiting:
            self._flush(self._write_rows)
        with self._errors():
            with closing(sqlite3.connect(self._file)) as database, database:
                self._require_all(database)
                database.execute(
                    "UPDATE gpkg_contents SET description = ?",
                    (f"samforge {self._layer.name} {self._about(report)}",),
                )
            place_file(self._file, self._path)
        self.discard()
        return self._path

    def discard(self) -> None:
        """Give up: nothing is left behind."""
        shutil.rmtree(self.part, ignore_errors=True)

    def _require_all(self, database: sqlite3.Connection) -> None:
        """GDAL tells of a full disk when it closes a file, and nobody hears it."""
        name = self._layer.name
        (found,) = database.execute(f'SELECT count(*) FROM "{name}"').fetchone()  # noqa: S608  ours
        if found != self._count:
            raise OutputError(
                f"{self._path} holds {found} of {self._count} objects: the disk was full for a "
                "while. Free some space and run again: what windows found is kept."
            )

    def _write_rows(self, rows: list[GeoFeature], columns: list[tuple[Any, ...]]) -> None:
        from shapely import to_wkb

        data: list[Any] = [
            np.array(columns[place] if columns else (), _TYPES[kind])
            for place, kind in enumerate(FIELDS.values())
        ]
        with warnings.catch_warnings():
            # A picture lies nowhere: that it has no reference system is no mistake.
            warnings.filterwarnings("ignore", "'crs' was not provided", UserWarning)
            self._write(
                self._file,
                geometry=np.array([to_wkb(one.geometry) for one in rows], np.object_),
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
        self._count += len(rows)


def _column(name: str) -> str:
    return "object" if name == "id" else name
