"""What is to be done with a raster."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samforge.core.errors import PromptError, SettingError
from samforge.core.version import __version__
from samforge.core.words import encodable
from samforge.formats import GEO_SUFFIXES
from samforge.rasters.grid import Grid
from samforge.rasters.ledger import SUFFIX
from samforge.rasters.source import RasterSource
from samforge.rasters.stretch import Stretch
from samforge.runtime import Thresholds
from samforge.workflows.thresholds import scores_of

Extent = tuple[float, float, float, float]
"""Left, bottom, right, top in coordinates of the raster; of plain pictures pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RasterPlan:
    """What to find in a raster, how to look at it, and where to write it.

    Raises:
        PromptError: No phrase is given, or an empty one.
        SettingError: A file, a size or an extent is not usable.
    """

    raster: Path
    """GeoTIFF, or any raster or picture that GDAL reads."""
    outs: tuple[Path, ...]
    """Files to write: .gpkg, .geojson or .parquet."""
    preview: Path | None = None
    """Picture of what was found to write, .png; None for none."""
    text: tuple[str, ...]
    """Phrases, each looked for by itself."""
    thresholds: Thresholds = Thresholds()  # noqa: RUF009  # frozen
    """What counts as found."""
    own_thresholds: Mapping[str, float] = field(default_factory=dict)
    """Phrases that detections have to score above another number for."""
    window: int | None = None
    """Side of a window, pixels; None takes the model's own image size."""
    overlap: int | None = None
    """Pixels that neighbours share: at least the length of the objects. None takes a quarter."""
    bands: tuple[int, ...] | None = None
    """One or three, from 1; None takes red, green and blue."""
    stretch: Stretch | None = None
    """Black and white of the raster's values; None decides by the whole raster."""
    extent: Extent | None = None
    """Only objects that reach into it; None takes all."""
    min_area: float = 0.0
    """Smallest object, in the unit of areas."""
    simplify: float = 0.0
    """How far outlines may move to have fewer corners, pixels; 0 keeps them exact."""
    crs: str | None = None
    """Coordinate reference system of a raster that has none."""
    coarse: bool = True
    """Whether a small picture of the whole is looked at for objects larger than windows share."""
    restart: bool = False
    """Whether to forget what an earlier run kept."""

    def __post_init__(self) -> None:
        if not self.text:
            raise PromptError("There is nothing to find. Give --text 'building'.")
        if any(not phrase.strip() for phrase in self.text):
            raise PromptError("A phrase is empty. Give words, such as --text 'building'.")
        if wrong := [phrase for phrase in self.text if encodable(phrase) != phrase]:
            raise PromptError(f"The phrase {wrong[0]!r:.80} is no UTF-8. Give words.")
        self._check_files()
        for name, number in (("min-area", self.min_area), ("simplify", self.simplify)):
            if not 0 <= number < math.inf:
                raise SettingError(f"--{name} is a number from 0 on, got {number:g}.")
        if self.extent is not None:
            _check_extent(self.extent)

    def _check_files(self) -> None:
        if not self.outs:
            raise SettingError(f"Name a file to write, ending in {', '.join(GEO_SUFFIXES)}.")
        for path in self.outs:
            if path.suffix.lower() not in GEO_SUFFIXES:
                raise SettingError(
                    f"--out is a file that ends in {', '.join(GEO_SUFFIXES)}, got {path.name}."
                )
        files = [self.raster, *self.outs, *filter(None, (self.preview,))]
        if strange := [path for path in files if encodable(str(path)) != str(path)]:
            raise SettingError(
                f"{strange[0]} has a name that is no UTF-8, and GDAL takes no other. Rename it, or "
                "give a link to it."
            )
        if len({path.absolute() for path in files}) < len(files):
            raise SettingError("Two of the files that are named are one. Give each its own name.")
        if self.preview is not None and self.preview.suffix.lower() != ".png":
            raise SettingError(f"--preview is a file that ends in .png, got {self.preview.name}.")

    @property
    def ledger(self) -> Path:
        """Where windows that are done are kept until all of them are."""
        first = self.outs[0]
        return first.with_name(first.name + SUFFIX)

    def scores(self) -> tuple[float, ...]:
        """What detections of each phrase score above."""
        return scores_of(self.text, self.own_thresholds, self.thresholds.score)

    def grid(self, size_hw: tuple[int, int], image_size: int) -> Grid:
        """Windows of a raster.

        Args:
            size_hw: Its height and width.
            image_size: Side of what the model looks at.

        Raises:
            SettingError: Window and overlap do not go together.
        """
        window = image_size if self.window is None else self.window
        overlap = max(1, window // 4) if self.overlap is None else self.overlap
        return Grid(size_hw=size_hw, window=window, overlap=overlap)

    def opened(self) -> RasterSource:
        """Open the raster.

        Raises:
            ImageError: It is none that can be read.
            SettingError: It has no such bands, or another reference system.
            MissingExtra: What reads rasters is not installed.
        """
        return RasterSource(self.raster, bands=self.bands, crs=self.crs)

    def key(self, digest: str, grid: Grid) -> dict[str, Any]:
        """What decides over what windows find: a run with another key cannot go on from this one.

        Args:
            digest: Of the bundle.
            grid: Its windows.
        """
        state = self.raster.stat()
        return {
            "samforge": __version__,
            "bundle": digest,
            "raster": [self.raster.name, state.st_size, state.st_mtime_ns],
            "size_hw": grid.size_hw,
            "window": grid.window,
            "overlap": grid.overlap,
            "bands": self.bands,
            "stretch": self.stretch,
            "text": self.text,
            "scores": self.scores(),
            "mask": self.thresholds.mask,
            "max_detections": self.thresholds.max_detections,
        }


def extent_from_text(text: str) -> Extent:
    """Read an extent as the command line takes it: ``left,bottom,right,top``.

    Raises:
        SettingError: It is no four numbers, or not in this order.
    """
    try:
        left, bottom, right, top = map(float, text.split(","))
    except ValueError as error:
        raise SettingError(
            f"An extent is left,bottom,right,top in coordinates of the raster, got {text!r:.80}."
        ) from error
    extent = (left, bottom, right, top)
    _check_extent(extent)
    return extent


def bands_from_text(text: str) -> tuple[int, ...]:
    """Read bands as the command line takes them: ``4,3,2``.

    Raises:
        SettingError: They are no numbers.
    """
    try:
        return tuple(map(int, text.split(",")))
    except ValueError as error:
        raise SettingError(
            f"Bands are one or three numbers, got {text!r:.80}. Write them like --bands 3,2,1."
        ) from error


def _check_extent(extent: Extent) -> None:
    left, bottom, right, top = extent
    if not (all(map(math.isfinite, extent)) and left < right and bottom < top):
        raise SettingError(
            "An extent is left,bottom,right,top with left below right and bottom below top, got "
            f"{','.join(f'{one:g}' for one in extent)}. Of plain pictures these are the least "
            "column, the least row, the largest column and the largest row."
        )
