"""GeoParquet 1.1, in the raster's own reference system: WKB, and a box for each row.

The format: https://geoparquet.org/releases/v1.1.0/.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from samforge.core.placing import place_file
from samforge.formats._geo_rows import GeoRows
from samforge.formats.geo_features import FIELDS, GeoFeature, GeoLayer

_ROW_GROUP = 10_000
_SIDES = ("xmin", "ymin", "xmax", "ymax")


class GeoParquetWriter(GeoRows):
    """Rows in groups, compressed with zstd."""

    def __init__(self, path: Path, layer: GeoLayer) -> None:
        """Begin a file; see :func:`samforge.formats.geo_writer`."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        super().__init__(path, layer, batch=_ROW_GROUP)
        self._arrow = pa
        types = {int: pa.int64(), float: pa.float64(), str: pa.string()}
        box = pa.struct([pa.field(side, pa.float64(), nullable=False) for side in _SIDES])
        self._schema = pa.schema(
            [
                *(pa.field(name, types[kind], nullable=False) for name, kind in FIELDS.items()),
                pa.field("bbox", box, nullable=False),
                pa.field("geometry", pa.binary(), nullable=False),
            ]
        )
        self._bounds: list[float] | None = None
        with self._errors():
            # Readers take what is said of the geometry from the schema's notes. With Arrow's own
            # schema in the file these would have to be known before the first row.
            self._writer = pq.ParquetWriter(
                self.part, self._schema, compression="zstd", store_schema=False
            )

    def finish(self, report: Mapping[str, Any]) -> Path:
        """Finish the file and put it under its name."""
        if self._waiting:
            self._flush(self._write_rows)
        with self._errors():
            self._writer.add_key_value_metadata(
                {
                    "geo": json.dumps(self._geo()),
                    f"samforge {self._layer.name}": self._about(report),
                }
            )
            self._writer.close()
            place_file(self.part, self._path)
        return self._path

    def discard(self) -> None:
        """Give up: nothing is left behind."""
        self.part.unlink(missing_ok=True)
        with suppress(OSError):  # what could not be written belonged to a file that is gone
            self._writer.close()

    def _write_rows(self, rows: list[GeoFeature], columns: list[tuple[Any, ...]]) -> None:
        import numpy as np
        from shapely import bounds, to_wkb

        pa = self._arrow
        geometries = [one.geometry for one in rows]
        edges = bounds(geometries)
        sides = [pa.array(edges[:, number]) for number in range(4)]
        box = pa.StructArray.from_arrays(sides, fields=list(self._schema.field("bbox").type))
        arrays = [*(pa.array(column) for column in columns), box, pa.array(to_wkb(geometries))]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        known = edges if self._bounds is None else np.vstack([edges, self._bounds])
        self._bounds = [*known[:, :2].min(axis=0).tolist(), *known[:, 2:].max(axis=0).tolist()]

    def _geo(self) -> dict[str, Any]:
        """What the format wants to be known of the column."""
        column: dict[str, Any] = {
            "encoding": "WKB",
            "geometry_types": ["Polygon", "MultiPolygon"],
            # Null says that it is unknown; without the key it would be longitude and latitude.
            "crs": _projjson(self._layer.crs),
            "covering": {"bbox": {side: ["bbox", side] for side in _SIDES}},
        }
        if self._bounds is not None:
            column["bbox"] = self._bounds
        return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}


def _projjson(crs: str | None) -> Any:
    if crs is None:
        return None
    from pyproj import CRS

    return CRS.from_wkt(crs).to_json_dict()
