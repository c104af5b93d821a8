"""Segments a raster window by window into objects on a map: the work behind ``samforge raster``."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict
from itertools import groupby
from typing import Any

from samforge.core.errors import SettingError
from samforge.core.structure import json_from_value
from samforge.core.version import __version__
from samforge.formats import GeoLayer, geo_writer
from samforge.rasters.coarse import LargeObject, holder
from samforge.rasters.grid import Grid, PixelBox, Place, intersection
from samforge.rasters.ledger import Ledger
from samforge.rasters.objects import ObjectSink, about_of, region_of
from samforge.rasters.plan import RasterPlan
from samforge.rasters.preview import Preview
from samforge.rasters.resolve import objects_from_cluster
from samforge.rasters.result import RasterResult
from samforge.rasters.source import RasterSource
from samforge.rasters.stitch import Stitcher
from samforge.rasters.stretch import stretch_of
from samforge.rasters.windows import Windows
from samforge.runtime import Segmenter
from samforge.workflows.watching import Done, unseen

LAYER = "raster"


def segment_raster(segmenter: Segmenter, plan: RasterPlan, *, done: Done = unseen) -> RasterResult:
    """Find phrases in a raster of any size, and write each object once.

    The raster is read in overlapping windows, row by row. Objects that windows cut are joined, and
    leave memory when every window that reaches them is done. A window that fails does not stop the
    others. What windows found is kept beside the first file until all of them are done: a run that
    was stopped, or of which windows failed, is resumed by the same call.

    Args:
        segmenter: With its sessions loaded.
        plan: What to do.
        done: Called after each window.

    Raises:
        ImageError: The raster cannot be opened, or has no place on a grid.
        SettingError: A setting does not fit the raster, or what is kept is of another run.
        OutputError: A file cannot be written.
        MissingExtra: A package of the extra ``geo`` is not installed.
    """
    start = time.perf_counter()
    with ExitStack() as stack:
        source = stack.enter_context(plan.opened())
        grid = plan.grid(source.size_hw, segmenter.image_size)
        region = None if plan.extent is None else region_of(plan.extent, source.place)
        inside = box_within(grid, region)
        key = plan.key(segmenter.digest, grid)
        ledger = stack.enter_context(Ledger(plan.ledger, key, restart=plan.restart))
        windows = Windows(
            source=source,
            grid=grid,
            plan=plan,
            stretch=plan.stretch or stretch_of(source),
            segmenter=segmenter,
            ledger=ledger,
        )
        run = _Run(windows, region, _layer(segmenter, windows), done)
        places = list(grid.over(inside))
        try:
            if plan.preview is not None:
                run.draw(Preview(source, windows.stretch, inside, plan.text))
            large = plan.coarse and max(grid.size_hw) > grid.window
            run.segment(places, windows.large(segmenter.image_size) if large else [])
            result = run.finish(time.perf_counter() - start)
        except BaseException:
            run.discard()
            raise
        if not result.failures:
            ledger.remove()
    return result


def expected_windows(plan: RasterPlan, image_size: int) -> int:
    """How many windows a plan begins with; an extent may take some more, to complete objects.

    Args:
        plan: What to do.
        image_size: Side of what the model looks at.

    Raises:
        ImageError, SettingError, MissingExtra: As :func:`segment_raster` does.
    """
    with plan.opened() as source:
        region = None if plan.extent is None else region_of(plan.extent, source.place)
        grid = plan.grid(source.size_hw, image_size)
        return sum(1 for _ in grid.over(box_within(grid, region)))


def box_within(grid: Grid, region: Any) -> PixelBox:
    """What lies around a region in a raster; all of it for None.

    Raises:
        SettingError: None does.
    """
    height, width = grid.size_hw
    box: PixelBox | None = (0, 0, width, height)
    if region is not None:
        left, top, right, bottom = region.bounds
        inside = (max(0, int(left)), max(0, int(top)), -int(-right // 1), -int(-bottom // 1))
        box = intersection(inside, (0, 0, width, height))
    if box is None:
        raise SettingError(
            "The extent lies outside the raster. Give it in the raster's own coordinates, as "
            "left,bottom,right,top: rio bounds, or gdalinfo, shows them."
        )
    return box


class _Run:
    """One raster on its way from windows to files."""

    def __init__(self, windows: Windows, region: Any, layer: GeoLayer, done: Done) -> None:
        self._windows, self._done = windows, done
        self._stitcher = Stitcher(windows.grid)
        self._large: list[LargeObject] = []
        self._asked = 0
        self._sink = ObjectSink(
            plan=windows.plan,
            place=windows.source.place,
            region=region,
            writers=[],
            phrases=windows.phrases,
        )
        try:
            for path in windows.plan.outs:
                self._sink.writers.append(geo_writer(path, layer))
                windows.ledger.remember_part(self._sink.writers[-1].part)
        except BaseException:
            self.discard()
            raise

    def draw(self, preview: Preview) -> None:
        """Draw objects on a picture, too."""
        self._sink.preview = preview

    def segment(self, places: Iterable[Place], large: list[LargeObject]) -> None:
        """Take windows until every object that reaches into the region is complete."""
        self._large = large
        missing = list(places)
        while missing:
            for _, row in groupby(missing, key=lambda place: place[0]):
                for place in row:
                    self._stitcher.add(place, self._windows.find(place))
                    self._asked += 1
                    self._done()
                with self._windows.timings.stage("stitch"):
                    self._settle()
            missing = sorted(self._missing())

    def finish(self, seconds: float) -> RasterResult:
        """Finish the files."""
        windows, sink = self._windows, self._sink
        result = self._result(seconds)
        report = json_from_value(
            {
                "objects": result.objects,
                "windows": result.windows,
                "without_data": result.without_data,
                "failed_windows": result.failures,
                "stretch": windows.stretch,
                "too_small": result.too_small,
            }
        )
        assert isinstance(report, dict)  # noqa: S101  # a table becomes a table
        for writer in sink.writers:
            writer.finish(report)
        if sink.preview is not None and windows.plan.preview is not None:
            for failure in windows.failures:
                sink.preview.add_failed(failure.box)
            sink.preview.write(windows.plan.preview)
        return result

    def discard(self) -> None:
        """Give up the files; what windows found is kept."""
        for writer in self._sink.writers:
            writer.discard()

    def _settle(self) -> None:
        """Write what cannot change any more."""
        windows = self._windows
        for cluster in self._stitcher.closed():
            for found in objects_from_cluster(
                cluster, windows.grid, windows.segmented.__contains__
            ):
                if holder(self._large, found) is None:
                    self._sink.add(found)
        for large in [one for one in self._large if not self._open_in(one)]:
            self._large.remove(large)
            itself, inside = large.outcome()
            if itself:
                self._sink.add_large(large)
            for found in inside:
                self._sink.add(found)

    def _open_in(self, large: LargeObject) -> bool:
        """Whether windows are missing that may change what is found in a large object."""
        places = self._windows.grid.over(large.box)
        if any(place not in self._stitcher.done for place in places):
            return True
        return any(
            intersection(piece.box, large.box) is not None
            for cluster in self._stitcher.opened()
            for piece in cluster.pieces
        )

    def _missing(self) -> set[Place]:
        """Windows that complete what reaches into the region."""
        needed: set[Place] = set()
        for cluster in self._stitcher.opened():
            if any(self._sink.reaches(piece.box) for piece in cluster.pieces):
                needed |= self._stitcher.missing(cluster)
        for large in self._large:
            boxes = [large.box, *(found.box for found in large.inside)]
            if any(map(self._sink.reaches, boxes)):
                needed |= set(self._windows.grid.over(large.box)) - set(self._stitcher.done)
                for cluster in self._stitcher.opened():
                    if any(intersection(piece.box, large.box) for piece in cluster.pieces):
                        needed |= self._stitcher.missing(cluster)
        return needed

    def _result(self, seconds: float) -> RasterResult:
        windows, sink, source = self._windows, self._sink, self._windows.source
        return RasterResult(
            outs=windows.plan.outs,
            size_hw=source.size_hw,
            crs=source.place.name,
            area_unit=source.place.area_unit,
            bands=source.bands,
            stretch=windows.stretch,
            window=windows.grid.window,
            overlap=windows.grid.overlap,
            windows=self._asked,
            without_data=windows.without_data,
            resumed=windows.resumed,
            failures=tuple(windows.failures),
            objects=sink.count,
            phrases=windows.phrases,
            sources=sink.sources,
            too_small=sink.too_small,
            seconds=seconds,
            stages=windows.timings.stages(),
            notes=tuple(_notes(source, windows)),
        )


def _layer(segmenter: Segmenter, windows: Windows) -> GeoLayer:
    plan, source = windows.plan, windows.source
    about = about_of(
        {
            "samforge": __version__,
            "bundle": segmenter.digest or None,
            "raster": plan.raster.name,
            "phrases": dict(zip(plan.text, plan.scores(), strict=True)),
            "window": windows.grid.window,
            "overlap": windows.grid.overlap,
            "bands": list(source.bands),
            "stretch": None if windows.stretch is None else asdict(windows.stretch),
            "extent": plan.extent,
            "area_unit": source.place.area_unit,
            "min_area": plan.min_area or None,
            "simplify": plan.simplify or None,
        }
    )
    return GeoLayer(name=LAYER, crs=source.place.crs, about=about)


def _notes(source: RasterSource, windows: Windows) -> Iterable[str]:
    if source.place.in_pixels:
        yield (
            "The picture has no place on a map: coordinates are columns and rows of its pixels, "
            "rows downwards, and areas are in pixels."
        )
    elif source.place.crs is None:
        yield (
            "The raster does not say its coordinate reference system: coordinates are its own. "
            "Name it with --crs, such as --crs EPSG:32633."
        )
    if not windows.segmented and not windows.failures:
        yield "No window holds any data: all of the raster is nodata."
