"""Objects on a map as files of geographic information systems, written as they come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

GEOJSON, GEOPACKAGE, GEOPARQUET = ".geojson", ".gpkg", ".parquet"
GEO_SUFFIXES = (GEOPACKAGE, GEOPARQUET, GEOJSON)
"""Endings of the three kinds of files."""

FIELDS: Mapping[str, type] = {
    "id": int,
    "label": str,
    "score": float,
    "area": float,
    "pixels": float,
    "windows": int,
    "source": str,
}
"""What every object has, and of which type."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GeoFeature:
    """One object."""

    geometry: Any
    """A shapely Polygon or MultiPolygon, in coordinates of the layer."""
    id: int
    """Its number in the file, from 1."""
    label: str
    """The phrase that found it."""
    score: float
    """0 to 1."""
    area: float
    """In the layer's unit."""
    pixels: float
    """Pixels of the raster that it covers."""
    windows: int
    """Windows whose pieces it is joined from."""
    source: str
    """``whole`` where one window shows all of it, ``joined`` where it is put together from several,
    ``cut`` where nothing continues it behind the edge of its window, ``coarse`` where it is from
    the small picture of the whole raster."""

    def values(self) -> tuple[Any, ...]:
        """In the order of :data:`FIELDS`."""
        return tuple(getattr(self, name) for name in FIELDS)


@dataclass(frozen=True, kw_only=True, slots=True)
class GeoLayer:
    """What a file says of all its objects."""

    name: str
    """Of the layer."""
    crs: str | None
    """Coordinate reference system as WKT; None for none."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Where the objects are from: bundle, raster, settings. Plain values."""


class GeoWriter(Protocol):
    """A file that grows, and appears under its name when it is finished."""

    @property
    def part(self) -> Path:
        """Where it is meanwhile: what a killed run leaves behind."""
        ...

    def add(self, features: Sequence[GeoFeature]) -> None:
        """Append objects.

        Raises:
            OutputError: The disk is full.
        """
        ...

    def finish(self, report: Mapping[str, Any]) -> Path:
        """Finish the file and put it under its name.

        Args:
            report: What came of the run, plain values.

        Raises:
            OutputError: The disk is full.
        """
        ...

    def discard(self) -> None:
        """Give up: nothing is left behind."""
        ...
