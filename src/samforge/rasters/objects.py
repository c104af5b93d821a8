"""Objects of a raster as features of its files: filtered, measured, counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from samforge.formats import GeoFeature, GeoWriter
from samforge.rasters.coarse import LargeObject
from samforge.rasters.georeference import Georeference
from samforge.rasters.grid import PixelBox
from samforge.rasters.outline import outline_of_pieces
from samforge.rasters.plan import Extent, RasterPlan
from samforge.rasters.preview import Preview
from samforge.rasters.resolve import StitchedObject
from samforge.rasters.result import PhraseTally

COARSE, CUT, JOINED, ONE = "coarse", "cut", "joined", "whole"


@dataclass(kw_only=True, slots=True)
class ObjectSink:
    """Takes objects, and writes those that are asked for."""

    plan: RasterPlan
    """What is asked for."""
    place: Georeference
    """Where the raster lies."""
    region: Any
    """The extent in columns and rows, a shapely Polygon; None for all of the raster."""
    writers: list[GeoWriter]
    """Files."""
    phrases: dict[str, PhraseTally]
    """Counts by phrase."""
    preview: Preview | None = None
    """Picture that objects are drawn on."""
    sources: dict[str, int] = field(default_factory=dict)
    """Counts by where outlines are from."""
    count: int = 0
    """Objects that were written."""
    too_small: int = 0
    """Left out for their area."""

    def add(self, found: StitchedObject) -> None:
        """Write what windows found."""
        joined = len({piece.place for piece in found.pieces})
        source = JOINED if joined > 1 else CUT if found.cut else ONE
        self._write(found, outline_of_pieces(found.pieces), source, joined)

    def add_large(self, found: LargeObject) -> None:
        """Write what the small picture shows."""
        self._write(found, found.outline(), COARSE, 0)

    def reaches(self, box: PixelBox) -> bool:
        """Whether a box may hold an object that reaches into the extent."""
        if self.region is None:
            return True
        left, top, right, bottom = self.region.bounds
        return bool(box[0] < right and box[1] < bottom and box[2] > left and box[3] > top)

    def _write(
        self, found: StitchedObject | LargeObject, outline: Any, source: str, windows: int
    ) -> None:
        if self.region is not None and not _shares_area(outline, self.region):
            return
        pixels = float(outline.area)
        area = self.place.area(outline)
        if area < self.plan.min_area:
            self.too_small += 1
            return
        if self.plan.simplify:
            outline = outline.simplify(self.plan.simplify)
        self.count += 1
        self.sources[source] = self.sources.get(source, 0) + 1
        tally = self.phrases.setdefault(found.label, PhraseTally())
        tally.objects += 1
        tally.area += area
        feature = GeoFeature(
            geometry=self.place.mapped(outline),
            id=self.count,
            label=found.label,
            score=round(found.score, 6),
            area=area,
            pixels=pixels,
            windows=windows,
            source=source,
        )
        for writer in self.writers:
            writer.add([feature])
        if self.preview is not None:
            self.preview.add(outline, found.label)


def region_of(extent: Extent, place: Georeference) -> Any:
    """An extent in columns and rows: a shapely Polygon, turned where the raster is."""
    from shapely import box

    return place.unmapped(box(*extent))


def about_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says of where its objects are from, without what was not given."""
    return {name: value for name, value in values.items() if value is not None}


def _shares_area(outline: Any, region: Any) -> bool:
    return bool(outline.intersects(region)) and not bool(outline.touches(region))
