"""Outlines of objects: polygons along the edges of pixels, exact, with holes and parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from samforge.core.runs import Crop
from samforge.formats.outlines import polygons_from_crop
from samforge.rasters.pieces import Piece


def outline_of_pieces(pieces: Sequence[Piece]) -> Any:
    """The union of pieces as a shapely Polygon or MultiPolygon, in columns and rows.

    Polygons are united, never pixels of a raster: a river through a hundred windows takes the
    memory of its banks.
    """
    from shapely import union_all

    parts = [outline_of_crop(piece.crop.pixels(piece.box), piece.box[:2]) for piece in pieces]
    return parts[0] if len(parts) == 1 else union_all(parts)


def outline_of_crop(crop: Crop, left_top: tuple[int, int]) -> Any:
    """Pixels as a shapely Polygon or MultiPolygon, in columns and rows.

    Pixels that meet in a corner alone are parts of their own, so that every polygon is valid.
    Its area is the number of pixels.

    Args:
        crop: (h, w), at least one pixel is True.
        left_top: Column and row of the first pixel.
    """
    from shapely import MultiPolygon, Polygon

    exact = polygons_from_crop(crop, (left_top[1], left_top[0]), tolerance_px=0.0, simple=True)
    polygons = [Polygon(ring, holes) for ring, holes in exact.parts]
    return polygons[0] if len(polygons) == 1 else MultiPolygon(polygons)
