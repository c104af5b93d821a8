"""Masks as polygons, by a stated policy for holes and for objects of several parts.

Outlines run along the edges of pixels, so that an exact one drawn again is the mask. They are
simplified by Douglas and Peucker's method (Cartographica 10, 1973), within a distance in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from samforge.core.runs import Crop
from samforge.formats.seams import Ring, with_holes, with_parts

MOST_TOLERANCE_PX = 1.0
"""How far a simplified outline may leave the pixels' edges."""
_TOLERANCE = 0.01  # of the side of a square as large as the mask: small objects stay exact


@dataclass(frozen=True, kw_only=True, slots=True)
class Outline:
    """The outline of one mask."""

    parts: tuple[tuple[Ring, tuple[Ring, ...]], ...]
    """Each connected part, the largest first: the ring around it and the rings of its holes."""

    @property
    def has_holes(self) -> bool:
        """Whether a part has one."""
        return any(holes for _, holes in self.parts)

    def as_coco(self) -> list[list[float]] | None:
        """COCO's polygons, one a part; None where a hole makes them impossible."""
        if self.has_holes or not self.parts:
            return None
        return [ring.ravel().tolist() for ring, _ in self.parts]

    def bridged(self) -> Ring:
        """One ring for everything: seams of no width lead into holes and to other parts.

        What is drawn of it by any fill rule is the mask, but for the seams themselves.
        """
        rings = self.bridged_parts()
        return with_parts(rings) if rings else np.zeros((0, 2))

    def bridged_parts(self) -> list[Ring]:
        """A ring for each part: seams of no width lead into its holes."""
        return [with_holes(ring, holes) for ring, holes in self.parts]


def polygons_from_crop(
    crop: Crop,
    top_left: tuple[int, int],
    *,
    tolerance_px: float | None = None,
    centres: bool = False,
    simple: bool = False,
) -> Outline:
    """Trace a mask.

    Pixels that meet at a corner alone are different parts. Holes that do are one, and a hole that
    meets the outside there is none: the ring passes that corner twice.

    Args:
        crop: bool (h, w).
        top_left: Row and column of its first pixel.
        tolerance_px: How far the outline may leave the pixels' edges; 0 keeps every corner. None
            takes a hundredth of the side of a square as large, at most a pixel.
        centres: Run through the centres of the outermost pixels instead of along their edges, for
            readers that fill an outline with the pixels on it, as OpenCV's ``fillPoly`` does.
        simple: Let no ring pass a corner twice: such holes are rings of their own, as polygons of
            geographic information systems have to be (OGC 06-103r4, 6.1.11.1).
    """
    if tolerance_px is None:
        tolerance_px = min(MOST_TOLERANCE_PX, _TOLERANCE * float(np.sqrt(crop.sum())))
    corner = np.array([top_left[1], top_left[0]], np.float64)
    rings = _rings(crop)
    if simple:
        rings = [loop for ring in rings for loop in _loops(ring)]
    areas = np.array([_signed_area(ring) for ring in rings])
    owners = _owners(rings, areas)
    rings = [ring + corner for ring in rings]
    outer = sorted((i for i in range(len(rings)) if areas[i] > 0), key=lambda i: -areas[i])
    holes: dict[int, list[Ring]] = {i: [] for i in outer}
    for i, owner in owners.items():
        holes[owner].append(rings[i])

    def finished(ring: Ring) -> Ring:
        return simplified(_inset(ring) if centres else ring, tolerance_px)

    return Outline(parts=tuple((finished(rings[i]), tuple(map(finished, holes[i]))) for i in outer))


def _inset(ring: Ring) -> Ring:
    """A ring along pixel edges, moved by half a pixel into the mask, which is on its right."""
    step = np.sign(np.roll(ring, -1, axis=0) - ring)
    right = np.stack([-step[:, 1], step[:, 0]], axis=1) / 2
    return ring + right + np.roll(right, 1, axis=0)


def simplified(ring: Ring, tolerance_px: float) -> Ring:
    """Leave out corners that lie nearer than a tolerance to the line without them."""
    if tolerance_px <= 0 or len(ring) <= 4:
        return ring
    # Two corners far apart stay: the ring falls into two lines.
    far = int(((ring - ring[0]) ** 2).sum(axis=1).argmax())
    closed = np.concatenate([ring, ring[:1]])
    keep = np.zeros(len(closed), np.bool_)
    keep[[0, far, len(ring)]] = True
    waiting = [(0, far), (far, len(ring))]
    while waiting:
        first, last = waiting.pop()
        if last - first < 2:
            continue
        distances = _distances(closed[first + 1 : last], closed[first], closed[last])
        worst = int(distances.argmax())
        if distances[worst] > tolerance_px:
            middle = first + 1 + worst
            keep[middle] = True
            waiting += [(first, middle), (middle, last)]
    kept = ring[keep[:-1]]
    return kept if len(kept) >= 3 else ring


def _rings(crop: Crop) -> list[Ring]:
    """Rings along pixel edges: parts run clockwise on the screen, holes the other way."""
    padded = np.pad(crop, 1)
    # Edges with the mask on their right: along the top to the right, along the foot to the left.
    across = padded[1:, 1:-1].astype(np.int8) - padded[:-1, 1:-1]  # (h + 1, w)
    down = padded[1:-1, 1:].astype(np.int8) - padded[1:-1, :-1]  # (h, w + 1)
    follow: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for y, first, last, sign in _runs(across):
        start, end = ((first, y), (last, y)) if sign > 0 else ((last, y), (first, y))
        follow.setdefault(start, []).append(end)
    for x, first, last, sign in _runs(down.T):
        start, end = ((x, last), (x, first)) if sign > 0 else ((x, first), (x, last))
        follow.setdefault(start, []).append(end)
    rings = []
    while follow:
        start = next(iter(follow))
        ring, place, before = [start], start, None
        while True:
            place, before = _next(follow, place, before), place
            if place == start:
                break
            ring.append(place)
        rings.append(np.array(ring, np.float64))
    return rings


def _loops(ring: Ring) -> Iterator[Ring]:
    """A ring in pieces that pass no corner twice."""
    corners = list(map(tuple, ring.tolist()))
    if len(set(corners)) == len(corners):
        yield ring
        return
    way: list[tuple[float, float]] = []
    places: dict[tuple[float, float], int] = {}
    for corner in corners:
        first = places.get(corner)
        if first is not None:
            yield np.array(way[first:], np.float64)
            for one in way[first:]:
                del places[one]
            del way[first:]
        places[corner] = len(way)
        way.append(corner)
    yield np.array(way, np.float64)


def _runs(edges: npt.NDArray[np.int8]) -> list[tuple[int, int, int, int]]:
    """Straight runs of edges of one direction: line, first and last corner, direction.

    A run ends where another line crosses it: where four pixels alternate, both turn.
    """
    lines, places = np.nonzero(edges)
    if len(lines) == 0:
        return []
    signs = edges[lines, places]
    # Along a line, a run of one sign is one edge; a change of sign is a crossing.
    begins = np.ones(len(lines), np.bool_)
    begins[1:] = (
        (lines[1:] != lines[:-1]) | (places[1:] != places[:-1] + 1) | (signs[1:] != signs[:-1])
    )
    first = np.flatnonzero(begins)
    last = np.append(first[1:], len(lines)) - 1
    return list(
        zip(
            lines[first].tolist(),
            places[first].tolist(),
            (places[last] + 1).tolist(),
            signs[first].tolist(),
            strict=True,
        )
    )


def _next(
    follow: dict[tuple[int, int], list[tuple[int, int]]],
    place: tuple[int, int],
    before: tuple[int, int] | None,
) -> tuple[int, int]:
    """Where the ring goes on; where two rings meet, it turns to the right and stays at its part."""
    ends = follow[place]
    chosen = 0
    if len(ends) > 1 and before is not None:
        came = (place[0] - before[0], place[1] - before[1])
        right = [came[0] * (y - place[1]) - came[1] * (x - place[0]) for x, y in ends]
        chosen = int(np.argmax(right))
    end = ends.pop(chosen)
    if not ends:
        del follow[place]
    return end


def _signed_area(ring: Ring) -> float:
    x, y = ring.T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def _owners(rings: list[Ring], areas: npt.NDArray[np.float64]) -> dict[int, int]:
    """For each hole, by its number, the ring around the part that it is in.

    What is left of a hole's leftmost edge is that part, up to the next edge: it is of the ring
    around the part, or of another of its holes.
    """
    holes = np.flatnonzero(areas < 0).tolist()
    if not holes:
        return {}
    starts = np.concatenate(rings).astype(np.int64)
    ends = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings]).astype(np.int64)
    names = np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])
    heights = np.abs(ends[:, 1] - starts[:, 1])  # 0 of edges along a row
    edges = np.repeat(np.arange(len(starts)), heights)
    within = np.arange(len(edges)) - np.repeat(np.cumsum(heights) - heights, heights)
    rows = np.minimum(starts[:, 1], ends[:, 1])[edges] + within
    columns, width = starts[edges, 0], int(starts[:, 0].max()) + 1
    order = np.argsort(rows * width + columns)
    keys, names = (rows * width + columns)[order], names[edges][order]
    corners = {i: min(map(tuple, rings[i].tolist())) for i in holes}
    owners: dict[int, int] = {}
    for i in sorted(holes, key=corners.__getitem__):
        x, y = corners[i]
        beside = int(names[np.searchsorted(keys, int(y) * width + int(x)) - 1])
        owners[i] = owners.get(beside, beside)
    return owners


def _distances(points: Ring, first: Any, last: Any) -> npt.NDArray[np.float64]:
    """Of points to the stretch between two others."""
    along = last - first
    length = float((along**2).sum())
    share = np.zeros(len(points))
    if length:
        share = (((points - first) @ along) / length).clip(0, 1)
    distances: npt.NDArray[np.float64] = np.linalg.norm(
        points - first - share[:, None] * along, axis=1
    )
    return distances
