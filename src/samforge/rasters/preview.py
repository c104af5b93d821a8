"""A picture of what was found: outlines over a small picture of the raster, drawn as they come."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from samforge.media import write_png
from samforge.rasters.grid import PixelBox
from samforge.rasters.source import RasterSource
from samforge.rasters.stretch import Stretch, picture_of

LONGEST = 2000
"""Pixels of its longer side, at most."""

# Told apart by people who see no red or no green: Okabe and Ito, https://jfly.uni-koeln.de/color.
_COLOURS = (
    *("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7"),
    "#ffffff",
)
_FAILED = "#ff0000"
_DIM = 0.7


class Preview:
    """Draws outlines, a colour a phrase; windows that failed are red frames."""

    def __init__(
        self,
        source: RasterSource,
        stretch: Stretch | None,
        box: PixelBox,
        labels: Iterable[str],
    ) -> None:
        """Read the picture that is drawn on.

        Args:
            source: The raster.
            stretch: How it is shown.
            box: What is shown of it.
            labels: Phrases, in the order of colours.

        Raises:
            ImageError: The raster is damaged.
        """
        small = picture_of(source.shrunk(LONGEST, smooth=True, box=box), stretch, source.palette)
        self._image = Image.fromarray((small * _DIM).astype(np.uint8))
        self._draw = ImageDraw.Draw(self._image)
        self._origin = box[:2]
        self._scale = self._image.width / (box[2] - box[0])
        self._colours = {
            label: _COLOURS[place % len(_COLOURS)] for place, label in enumerate(labels)
        }

    def add(self, outline: Any, label: str) -> None:
        """Draw an object.

        Args:
            outline: A shapely Polygon or MultiPolygon, in columns and rows of the raster.
            label: Its phrase.
        """
        for polygon in getattr(outline, "geoms", [outline]):
            for ring in (polygon.exterior, *polygon.interiors):
                points = (np.asarray(ring.coords) - self._origin) * self._scale
                line = [tuple(one) for one in points.tolist()]
                self._draw.line(line, "black", 4)  # seen on ground of any colour
                self._draw.line(line, self._colours[label], 2)

    def add_failed(self, box: PixelBox) -> None:
        """Draw a window that failed."""
        x, y = self._origin
        places = ((box[0] - x, box[1] - y), (box[2] - x, box[3] - y))
        corners = [(self._scale * across, self._scale * down) for across, down in places]
        self._draw.rectangle(corners, outline=_FAILED, width=2)

    def write(self, path: Path) -> Path:
        """Write it as PNG.

        Raises:
            OutputError: The folder cannot be written, or the disk is full.
        """
        return write_png(path, np.asarray(self._image))
