"""What came of a raster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from samforge.core.timing import StageTime
from samforge.rasters.grid import PixelBox
from samforge.rasters.stretch import Stretch


@dataclass(kw_only=True, slots=True)
class PhraseTally:
    """How one phrase fared."""

    objects: int = 0
    """Written."""
    area: float = 0.0
    """All of theirs, in the unit of areas."""
    best_score: float = 0.0
    """Highest score of any window, admitted or not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowFailure:
    """A window without a result."""

    window: str
    """Its row and column in the grid, from 0: ``3,17``; ``whole`` is the small picture."""
    box: PixelBox
    """What it covers: left, top, right, bottom in pixels of the raster."""
    kind: str
    """Class of the error."""
    message: str
    """Its message."""
    exit_code: int
    """Exit status of its kind."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RasterResult:
    """What came of a run."""

    outs: tuple[Path, ...]
    """Files that were written."""
    size_hw: tuple[int, int]
    """Height and width of the raster."""
    crs: str
    """Its reference system: ``EPSG:32633``; ``pixels`` of a picture, ``unknown`` of a raster that
    does not say."""
    area_unit: str
    """Of areas: ``m2``, ``pixels``."""
    bands: tuple[int, ...]
    """That were looked at."""
    stretch: Stretch | None
    """What became black and white; None where 8-bit values stayed what they are."""
    window: int
    """Side of a window, pixels."""
    overlap: int
    """Pixels that windows share."""
    windows: int
    """That were asked for."""
    without_data: int
    """Of them, skipped: they hold no data."""
    resumed: int
    """Of them, taken over from an earlier run."""
    failures: tuple[WindowFailure, ...]
    """Windows without a result. A further run tries these alone."""
    objects: int
    """Written, each once."""
    phrases: Mapping[str, PhraseTally]
    """The same by phrase."""
    sources: Mapping[str, int]
    """How many are whole in a window, joined, cut, or from the small picture."""
    too_small: int
    """Left out: below the smallest area."""
    seconds: float
    """From opening the raster to finished files."""
    stages: tuple[StageTime, ...]
    """Where the time went, summed over the windows."""
    notes: tuple[str, ...]
    """What a reader has to know."""
