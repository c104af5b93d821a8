"""Rasters of drawn shapes with their truth, drawn row by row in the memory of a band."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from samforge.core.packed_crop import PackedCrop
from samforge.models.tiny.scenes import _ground, _photographed, _placed_at, _tint

_GROUND = 2048
_BAND = 1024
_GAP = 0.12
"""Between shapes, of the larger one's radius."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """What is drawn."""

    side: int
    """Height and width, pixels."""
    count: int
    """Shapes."""
    radius: tuple[float, float]
    """Least and most, pixels."""
    numbered: bool
    """Whether the colours of shapes are their numbers, for an oracle; else they are painted."""
    seed: int = 0
    """Of where they lie."""

    @property
    def longest(self) -> int:
        """Pixels of the largest shape."""
        return int(np.ceil(2.14 * self.radius[1]))


def placed(drawing: Drawing) -> list[Any]:
    """The shapes: where they lie and which pixels they cover, none over another."""
    rng = np.random.default_rng([5, drawing.seed])
    reach = 2.3 * drawing.radius[1]
    cells: dict[tuple[int, int], list[tuple[float, float, float]]] = {}
    shapes: list[Any] = []
    while len(shapes) < drawing.count:
        radius = float(rng.uniform(*drawing.radius))
        x, y = (float(one) for one in rng.uniform(1.1 * radius, drawing.side - 1.1 * radius, 2))
        column, row = int(x // reach), int(y // reach)
        near = [
            one
            for down in (-1, 0, 1)
            for across in (-1, 0, 1)
            for one in cells.get((column + across, row + down), ())
        ]
        if any(np.hypot(x - a, y - b) < (1.07 + _GAP) * (radius + c) for a, b, c in near):
            continue
        cells.setdefault((column, row), []).append((x, y, radius))
        colour, shape = int(rng.integers(8)), int(rng.integers(6))
        angle = float(rng.uniform(0, 2 * np.pi))
        shapes.append(_placed_at(colour, shape, (x, y, radius, angle), drawing.side))
    return shapes


def truth_of(drawing: Drawing) -> list[PackedCrop]:
    """Every shape's pixels."""
    return [
        PackedCrop.from_crop(one.mask, (one.window[0].start, one.window[1].start))
        for one in placed(drawing)
    ]


def draw(drawing: Drawing, path: Path) -> None:
    """Write the raster as a tiled GeoTIFF in EPSG:32633, half a metre a pixel."""
    rng = np.random.default_rng([6, drawing.seed])
    ground = _ground(rng, _GROUND)
    shapes = sorted(enumerate(placed(drawing), 1), key=lambda one: (one[1].window[0].start, one[0]))
    tints = {number: _tint(rng, one.colour) for number, one in shapes}
    side = drawing.side
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=side,
        height=side,
        count=3,
        dtype="uint8",
        crs="EPSG:32633",
        transform=rasterio.Affine(0.5, 0, 400_000, 0, -0.5, 5_800_000),
        tiled=True,
        compress="deflate" if drawing.numbered else None,
        photometric="RGB",
    ) as file:
        for top in range(0, side, _BAND):
            bottom = min(side, top + _BAND)
            if drawing.numbered:
                band = np.zeros((bottom - top, side, 3), np.float32)
            else:
                band = _tiled(ground, top, bottom, side)
            for number, one in shapes:
                rows, columns = one.window
                if rows.start >= bottom:
                    break
                first, last = max(top, rows.start), min(bottom, rows.stop)
                if first >= last:
                    continue
                mask = one.mask[first - rows.start : last - rows.start]
                colour = (number >> 16, number >> 8 & 255, number & 255)
                band[first - top : last - top, columns][mask] = (
                    colour if drawing.numbered else tints[number]
                )
            shown = band.astype(np.uint8) if drawing.numbered else _photographed(rng, band)
            window = rasterio.windows.Window(0, top, side, bottom - top)
            file.write(shown.transpose(2, 0, 1), window=window)


def _tiled(ground: Any, top: int, bottom: int, side: int) -> Any:
    """Ground for some rows: the tile and its mirror image in turn, so that none begins anew."""
    twice = np.concatenate([np.arange(_GROUND), np.arange(_GROUND)[::-1]])
    rows = twice[np.arange(top, bottom) % (2 * _GROUND)]
    columns = twice[np.arange(side) % (2 * _GROUND)]
    return ground[rows][:, columns]
