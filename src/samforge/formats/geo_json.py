"""GeoJSON (RFC 7946): longitude and latitude of WGS 84, or pixels of a picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from samforge.core.words import json_text
from samforge.formats._growing import GrowingFile
from samforge.formats.geo_features import FIELDS, GeoFeature, GeoLayer

DIGITS = 9
"""Behind the point, of degrees: a tenth of a millimetre."""


class GeoJsonWriter:
    """A FeatureCollection, one feature a line.

    Coordinates of a layer with a reference system are given in WGS 84, the only one that RFC 7946
    knows; those of one without stay what they are, and ``info`` says so. Outer rings run
    counterclockwise.
    """

    def __init__(self, path: Path, layer: GeoLayer) -> None:
        """Begin a file; see :func:`samforge.formats.geo_writer`."""
        self._turned = _to_wgs84(layer.crs)
        self._count = 0
        self._file = GrowingFile(path)
        info = {
            "description": f"samforge {layer.name}",
            "coordinates": "EPSG:4326" if layer.crs else "those of the raster",
            **layer.about,
        }
        self._file.write('{"info": ' + json_text(info, indent=None))
        self._file.write(', "type": "FeatureCollection", "features": [')

    @property
    def part(self) -> Path:
        """Where it is meanwhile."""
        return self._file.part

    def add(self, features: Sequence[GeoFeature]) -> None:
        """Append objects."""
        from shapely import orient_polygons
        from shapely.geometry import mapping

        for feature in features:
            geometry = orient_polygons(self._turned(feature.geometry))
            line = {
                "type": "Feature",
                "id": feature.id,
                "properties": dict(zip(FIELDS, feature.values(), strict=True)),
                "geometry": mapping(geometry),
            }
            comma = ",\n" if self._count else "\n"
            self._file.write(comma + json.dumps(line))
            self._count += 1

    def finish(self, report: Mapping[str, Any]) -> Path:
        """Finish the file and put it under its name."""
        self._file.write('\n], "report": ' + json_text(report, indent=None) + "}\n")
        return self._file.finish()

    def discard(self) -> None:
        """Give up: nothing is left behind."""
        self._file.discard()


def _to_wgs84(crs: str | None) -> Callable[[Any], Any]:
    import numpy as np
    from shapely import transform

    if crs is None:
        return lambda geometry: geometry
    from pyproj import CRS, Transformer

    way = Transformer.from_crs(CRS.from_wkt(crs), CRS.from_epsg(4326), always_xy=True)

    def turned(points: Any) -> Any:
        x, y = way.transform(points[:, 0], points[:, 1], errcheck=True)
        return np.round(np.stack([x, y], axis=1), DIGITS)

    return lambda geometry: transform(geometry, turned)
