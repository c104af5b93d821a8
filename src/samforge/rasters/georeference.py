"""Where a raster lies: pixels to map coordinates and back, and areas in map units."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

from samforge.core.errors import ImageError, SettingError

Affine6: TypeAlias = tuple[float, float, float, float, float, float]
"""a, b, c, d, e, f: x = a * column + b * row + c, y = d * column + e * row + f."""

PIXELS: Affine6 = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
"""Of a picture that lies nowhere: x is the column and y the row, downwards."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Georeference:
    """Where a raster lies."""

    transform: Affine6
    """From columns and rows to coordinates; it may turn and shear."""
    crs: str | None
    """Coordinate reference system as WKT; None where the file has none."""

    @property
    def in_pixels(self) -> bool:
        """Whether coordinates are columns and rows of the picture."""
        return self.crs is None and self.transform == PIXELS

    @property
    def pixel_area(self) -> float:
        """Area of a pixel in units of the coordinates."""
        a, b, _, d, e, _ = self.transform
        return abs(a * e - b * d)

    @property
    def geographic(self) -> bool:
        """Whether coordinates are degrees: then areas are measured on the ellipsoid."""
        return self.crs is not None and _crs(self.crs).is_geographic

    @property
    def area_unit(self) -> str:
        """What areas are counted in: ``m2``, ``US survey foot2``, ``pixels``."""
        if self.in_pixels:
            return "pixels"
        if self.crs is None:
            return "units2"
        if self.geographic:
            return "m2"
        name = _crs(self.crs).axis_info[0].unit_name
        return "m2" if name in ("metre", "meter") else f"{name}2"

    @property
    def name(self) -> str:
        """Its reference system for people: ``EPSG:32633``."""
        if self.crs is None:
            return "pixels" if self.in_pixels else "unknown"
        crs = _crs(self.crs)
        authority = crs.to_authority()
        return ":".join(authority) if authority else str(crs.name)

    def mapped(self, geometry: Any) -> Any:
        """A shapely geometry of columns and rows in coordinates."""
        from shapely.affinity import affine_transform

        if self.in_pixels:
            return geometry
        a, b, c, d, e, f = self.transform
        return affine_transform(geometry, (a, b, d, e, c, f))

    def unmapped(self, geometry: Any) -> Any:
        """A shapely geometry of coordinates in columns and rows."""
        from shapely.affinity import affine_transform

        a, b, c, d, e, f = self.transform
        area = a * e - b * d
        inverse = (e / area, -b / area, -d / area, a / area)
        x = -(inverse[0] * c + inverse[1] * f)
        y = -(inverse[2] * c + inverse[3] * f)
        return affine_transform(geometry, (*inverse, x, y))

    def area(self, outline: Any) -> float:
        """Area of a shapely geometry of columns and rows, in :attr:`area_unit`."""
        if not self.geographic:
            return float(outline.area) * self.pixel_area
        from shapely import orient_polygons

        # Signed areas are summed: holes have to run the other way than what is around them.
        outline = orient_polygons(self.mapped(outline))
        return abs(float(_crs(self.crs).get_geod().geometry_area_perimeter(outline)[0]))


def georeference_of(file: Any, path: Path, crs: str | None) -> Georeference:
    """Read where an open raster lies.

    Args:
        file: rasterio's data set.
        path: Its file, for messages.
        crs: What its reference system is, where the file does not say.

    Raises:
        ImageError: It has control points instead of a transform, or its pixels have no area.
        SettingError: ``crs`` is none, or the file has another.
    """
    a, b, c, d, e, f = tuple(file.transform)[:6]
    transform: Affine6 = (a, b, c, d, e, f)
    if transform == PIXELS and (file.gcps[0] or file.rpcs):
        raise ImageError(
            f"{path} has control points and no geotransform: its pixels lie on no grid. Rectify it "
            "first: gdalwarp IN.tif OUT.tif."
        )
    if a * e - b * d == 0:
        raise ImageError(f"{path} has the geotransform {transform}, in which pixels have no area.")
    own = file.crs.to_wkt() if file.crs else None
    if crs is None:
        return Georeference(transform=transform, crs=own)
    given = _given(crs)
    if own is not None and not _crs(own).equals(given):
        raise SettingError(
            f"{path} says that it is in {_crs(own).name}, and --crs names {given.name}. Leave "
            "--crs out; to reproject a raster, use gdalwarp."
        )
    if transform == PIXELS:
        raise SettingError(
            f"{path} has no geotransform, so no reference system can apply to it. Leave --crs out: "
            "results are in pixels."
        )
    return Georeference(transform=transform, crs=given.to_wkt())


def _given(text: str) -> Any:
    from pyproj import CRS
    from pyproj.exceptions import CRSError

    try:
        return CRS.from_user_input(text)
    except CRSError as error:
        raise SettingError(
            f"{text!r:.80} is no coordinate reference system. Write it like EPSG:32633."
        ) from error


@lru_cache(maxsize=8)
def _crs(wkt: str | None) -> Any:
    from pyproj import CRS

    return CRS.from_wkt(wkt or "")
