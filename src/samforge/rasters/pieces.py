"""What one window shows of an object."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from samforge.core.detections import Detections
from samforge.core.packed_crop import DeflatedCrop, PackedCrop
from samforge.rasters.grid import Grid, PixelBox, Place, intersection

Valid = npt.NDArray[np.bool_]

_STRAY = 0.25
"""Share of a mask up to which what lies apart from it at an edge is no part of it."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Piece:
    """An object as one window shows it: whole, or cut by an inner edge of the window."""

    label: str
    """The phrase that found it."""
    score: float
    """0 to 1."""
    place: Place
    """The window."""
    crop: PackedCrop
    """Its pixels, in rows and columns of the raster."""
    box: PixelBox
    """Around them."""
    area: int
    """How many they are, at least 1."""
    cut: bool
    """Whether it reaches an inner edge of its window, behind which it may go on."""
    trimmed: bool
    """Whether stray pixels at such an edge were taken off."""

    @property
    def order(self) -> tuple[bool, float, int, int, Place]:
        """Best score first; what decides between equal ones does not depend on the run."""
        return self.trimmed, -self.score, self.box[1], self.box[0], self.place

    def within(self, box: PixelBox) -> int:
        """Pixels that lie in a box."""
        shared = intersection(self.box, box)
        return 0 if shared is None else int(np.count_nonzero(self.crop.pixels(shared)))

    def to_dict(self) -> dict[str, Any]:
        """As plain values, some hundred bytes."""
        kept = self.crop.deflated()
        return {
            "label": self.label,
            "score": self.score,
            "trimmed": self.trimmed,
            "top": int(kept.top),
            "left": int(kept.left),
            "shape": list(kept.shape),
            "data": base64.b85encode(kept.data).decode("ascii"),
        }


def pieces_from_detections(
    found: Detections, grid: Grid, place: Place, valid: Valid | None
) -> list[Piece]:
    """What a window found, in pixels of the raster.

    Args:
        found: Detections of the square that was read for the window.
        grid: Where the window lies.
        place: Which one it is.
        valid: (h, w) of what the window covers of the raster, False where there is no data; None
            where all of it is valid. Masks end there.

    Returns:
        One piece for each detection that covers anything of the raster.
    """
    left, top, right, bottom = grid.box(place)
    pieces = []
    for number, label in enumerate(found.labels):
        pixels, (row, column) = found.masks.crop(number)
        # What the square has beyond the raster is no part of it.
        pixels = pixels[: max(0, bottom - top - row), : max(0, right - left - column)]
        if valid is not None:
            height, width = pixels.shape
            pixels = pixels & valid[row : row + height, column : column + width]
        crop = PackedCrop.from_crop(pixels, (top + row, left + column))
        piece = piece_from_crop(crop, grid, place, label, float(found.scores[number]))
        if piece is not None:
            pieces.append(piece)
    return pieces


def piece_from_crop(
    crop: PackedCrop, grid: Grid, place: Place, label: str, score: float
) -> Piece | None:
    """A piece of what a window found; None where it covers nothing."""
    area, box = crop.area, crop.box
    if area == 0:
        return None
    cut = grid.cut(place, box)
    kept = _without_strays(crop, grid, place) if cut else None
    if kept is not None:
        crop, area, box, cut = kept, kept.area, kept.box, False
    return Piece(
        label=label,
        score=score,
        place=place,
        crop=crop,
        box=box,
        area=area,
        cut=cut,
        trimmed=kept is not None,
    )


def _without_strays(crop: PackedCrop, grid: Grid, place: Place) -> PackedCrop | None:
    """A mask without the little that lies apart from it at an inner edge of its window.

    At an edge a model gives an object pixels of another one, of which it sees too little to find
    it. Such a mask would count as cut, and tie both.

    Returns:
        None where the largest part itself is cut, or what is cut is not little.
    """
    from scipy import ndimage

    left, top, _, _ = crop.box
    pixels = crop.pixels(crop.box)
    numbers, count = ndimage.label(pixels)
    areas = np.bincount(numbers.ravel(), minlength=count + 1)[1:]
    boxes = [
        (left + columns.start, top + rows.start, left + columns.stop, top + rows.stop)
        for rows, columns in ndimage.find_objects(numbers)
    ]
    cut = np.array([grid.cut(place, box) for box in boxes])
    if cut[areas.argmax()] or areas[cut].sum() > _STRAY * areas.sum():
        return None
    kept = pixels & ~np.isin(numbers, np.flatnonzero(cut) + 1)
    return PackedCrop.from_crop(kept, (top, left))


def piece_from_dict(values: Mapping[str, Any], grid: Grid, place: Place) -> Piece | None:
    """Read what :meth:`Piece.to_dict` wrote."""
    rows, columns = values["shape"]
    kept = DeflatedCrop(
        top=values["top"],
        left=values["left"],
        shape=(rows, columns),
        data=base64.b85decode(values["data"]),
    )
    piece = piece_from_crop(kept.inflated(), grid, place, values["label"], values["score"])
    if piece is None or not values["trimmed"]:
        return piece
    return replace(piece, trimmed=True)
