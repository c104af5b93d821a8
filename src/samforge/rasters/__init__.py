"""Rasters and very large pictures: windows, seams, maps. Needs the extra ``geo``."""

from samforge.rasters.plan import Extent, RasterPlan, bands_from_text, extent_from_text
from samforge.rasters.result import PhraseTally, RasterResult, WindowFailure
from samforge.rasters.segment import expected_windows, segment_raster
from samforge.rasters.stretch import Stretch, stretch_from_text

__all__ = [
    "Extent",
    "PhraseTally",
    "RasterPlan",
    "RasterResult",
    "Stretch",
    "WindowFailure",
    "bands_from_text",
    "expected_windows",
    "extent_from_text",
    "segment_raster",
    "stretch_from_text",
]
