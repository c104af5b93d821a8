"""Which writer a file of objects on a map wants."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from samforge.core.errors import MissingExtra, SettingError
from samforge.formats.geo_features import (
    GEO_SUFFIXES,
    GEOJSON,
    GEOPACKAGE,
    GEOPARQUET,
    GeoLayer,
    GeoWriter,
)
from samforge.formats.geo_json import GeoJsonWriter
from samforge.formats.geo_package import GeoPackageWriter
from samforge.formats.geo_parquet import GeoParquetWriter


def geo_writer(path: Path, layer: GeoLayer) -> GeoWriter:
    """Begin a file, of the kind that its ending says.

    Raises:
        SettingError: The ending is none of :data:`GEO_SUFFIXES`.
        OutputError: The file cannot be written.
        MissingExtra: What writes it is not installed.
    """
    kinds: dict[str, Callable[[Path, GeoLayer], GeoWriter]] = {
        GEOJSON: GeoJsonWriter,
        GEOPACKAGE: GeoPackageWriter,
        GEOPARQUET: GeoParquetWriter,
    }
    suffix = path.suffix.lower()
    if suffix not in kinds:
        raise SettingError(
            f"Objects on a map are written as {', '.join(GEO_SUFFIXES)}, got {path.name}."
        )
    try:
        return kinds[suffix](path, layer)
    except ModuleNotFoundError as error:
        raise MissingExtra(str(error.name), "geo") from error
