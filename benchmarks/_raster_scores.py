"""What methods make of the same pieces, and how far that is from the truth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyogrio.raw
import shapely
from rasterio.features import rasterize

from samforge.core.packed_crop import PackedCrop
from samforge.rasters.grid import Grid, intersection
from samforge.rasters.ledger import Ledger
from samforge.rasters.pieces import Piece

_CELL = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """How far objects are from the truth."""

    objects: int
    """Found."""
    count_error: float
    """Their number less the true one, as a share of it."""
    mean_iou: float
    """Of every true object with the one found object that fits it best; 0 where none does."""
    missed: int
    """True objects that nothing fits by half."""
    surplus: int
    """Found objects that fit none, or one that a better one fits."""


class Near:
    """Masks by where they lie."""

    def __init__(self, crops: Sequence[PackedCrop]) -> None:
        self.crops = crops
        self.areas = [one.area for one in crops]
        self._cells: dict[tuple[int, int], list[int]] = {}
        for number, one in enumerate(crops):
            for cell in _cells(one):
                self._cells.setdefault(cell, []).append(number)

    def overlapping(self, crop: PackedCrop) -> Iterator[tuple[int, int]]:
        """Numbers of masks that share pixels with one, and how many."""
        near = {number for cell in _cells(crop) for number in self._cells.get(cell, ())}
        for number in sorted(near):
            shared = crop.overlap(self.crops[number])
            if shared:
                yield number, shared


def score(found: Sequence[PackedCrop], truth: Sequence[PackedCrop]) -> Score:
    """Compare objects with the truth, each with at most one of the others."""
    near = Near(truth)
    pairs = []
    for number, crop in enumerate(found):
        area = crop.area
        for other, shared in near.overlapping(crop):
            pairs.append((shared / (area + near.areas[other] - shared), number, other))
    best: dict[int, float] = {}
    used: set[int] = set()
    for iou, number, other in sorted(pairs, reverse=True):
        if iou >= 0.5 and other not in best and number not in used:
            best[other] = iou
            used.add(number)
    return Score(
        objects=len(found),
        count_error=round((len(found) - len(truth)) / len(truth), 5),
        mean_iou=round(sum(best.values()) / len(truth), 5),
        missed=len(truth) - len(best),
        surplus=len(found) - len(best),
    )


def objects_of_file(path: Path) -> list[PackedCrop]:
    """Outlines of a GeoPackage as pixels of the raster it is of."""
    _, _, geometries, _ = pyogrio.raw.read(path)
    crops = []
    for one in shapely.from_wkb(geometries):
        outline = shapely.transform(one, lambda points: (points - [400_000, 5_800_000]) * [2, -2])
        left, top, right, bottom = (round(edge) for edge in outline.bounds)
        moved = shapely.transform(outline, lambda points: points - [left, top])  # noqa: B023
        pixels = rasterize([moved], out_shape=(bottom - top, right - left)).astype(bool)
        crops.append(PackedCrop.from_crop(pixels, (top, left)))
    return crops


def pieces_of_ledger(ledger: Ledger, grid: Grid) -> list[Piece]:
    """Everything that windows found."""
    rows, columns = grid.shape
    places = ((row, column) for row in range(rows) for column in range(columns))
    return [piece for place in places for piece in ledger.read(place, grid).pieces]


def unjoined(pieces: Sequence[Piece]) -> list[PackedCrop]:
    """Every window's objects, as they are."""
    return [piece.crop for piece in pieces]


def pasted(pieces: Sequence[Piece], grid: Grid) -> list[PackedCrop]:
    """The core of each window is pasted into one picture of labels: halves of objects stay two.

    As samgeo does it (samgeo/samgeo3.py of 1.4.2, generate_masks_tiled): half of the overlap is
    cut off at inner edges, and every window numbers its objects anew.
    """
    objects = []
    half = grid.overlap // 2
    for piece in pieces:
        edges, inner = grid.box(piece.place), grid.inner_edges(piece.place)
        signs = (1, 1, -1, -1)
        core = tuple(
            edge + sign * half * cut for edge, sign, cut in zip(edges, signs, inner, strict=True)
        )
        shared = intersection(piece.box, core)  # type: ignore[arg-type]  # four of them
        if shared is not None and piece.within(shared):
            objects.append(PackedCrop.from_crop(piece.crop.pixels(shared), (shared[1], shared[0])))
    return objects


def suppressed(pieces: Sequence[Piece], threshold: float = 0.5) -> list[PackedCrop]:
    """Non-maximum suppression by IoU of masks over all windows, best score first."""
    ordered = sorted(pieces, key=lambda piece: (-piece.score, -piece.area))
    near = Near([piece.crop for piece in ordered])
    gone: set[int] = set()
    for number, piece in enumerate(ordered):
        if number in gone:
            continue
        for other, shared in near.overlapping(piece.crop):
            if other > number and shared >= threshold * (piece.area + near.areas[other] - shared):
                gone.add(other)
    return [piece.crop for number, piece in enumerate(ordered) if number not in gone]


def across_seams(truth: Sequence[PackedCrop], grid: Grid) -> float:
    """Share of objects that an inner edge of some window cuts."""
    count = 0
    for one in truth:
        box = one.box
        count += any(
            intersection(box, grid.box(place)) not in (None, box) for place in grid.over(box)
        )
    return count / len(truth)


def _cells(crop: PackedCrop) -> Iterator[tuple[int, int]]:
    left, top, right, bottom = crop.extent
    for row in range(top // _CELL, (bottom - 1) // _CELL + 1):
        for column in range(left // _CELL, (right - 1) // _CELL + 1):
            yield row, column
