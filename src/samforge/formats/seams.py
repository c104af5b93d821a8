"""Rings joined to one by seams of no width: into holes, and between parts.

The time is about that of the corners and the height of the rings, however many of them there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from scipy.spatial import cKDTree

Ring: TypeAlias = npt.NDArray[np.float64]
"""(V, 2), x and y of the corners; the last one leads to the first."""
_Point: TypeAlias = tuple[float, float]
_NEAR = 9
"""Corners that are looked at around each: most rings are joined by these."""


@dataclass(kw_only=True, slots=True)
class _Node:
    """A ring, and the rings that seams lead to from it."""

    ring: Ring
    start: int = 0
    """Corner at which its own seam ends."""
    seams: dict[int, list[tuple[float, _Point, int]]] = field(default_factory=dict)
    """By the edge that they leave: how far along it, where, and to which node."""

    def leave(self, edge: int, point: _Point, to: int) -> None:
        """Let a seam leave an edge, which begins at the corner of that number."""
        x, y = self.ring[edge]
        along = (point[0] - x) ** 2 + (point[1] - y) ** 2
        self.seams.setdefault(edge, []).append((float(along), point, to))


def with_holes(ring: Ring, holes: Sequence[Ring]) -> Ring:
    """One ring for a part and its holes.

    A seam leads from the leftmost corner of a hole to the left, to the first ring that it meets:
    it runs inside the part and crosses nothing. This is how polygons with holes are prepared for
    triangulation (D. Eberly, Triangulation by Ear Clipping, 2002).
    """
    if not holes:
        return ring
    nodes = [_Node(ring=one) for one in (ring, *holes)]
    rows = _Rows([node.ring for node in nodes])
    first = [0, *(int(np.lexsort((one[:, 1], one[:, 0]))[0]) for one in holes)]
    left = [nodes[i].ring[first[i]] for i in range(len(nodes))]
    order = sorted(range(1, len(nodes)), key=lambda i: (*left[i].tolist(), i))
    rank = np.zeros(len(nodes), np.int64)
    rank[order] = np.arange(1, len(nodes))
    for i in order:
        x, y = left[i].tolist()
        met = rows.left_of(x, y, rank, int(rank[i]))
        if met is None:  # simplified rings may cross: any corner of the ring around it is as right
            edge = int(((ring - left[i]) ** 2).sum(axis=1).argmin())
            met = 0, edge, float(ring[edge, 0]), float(ring[edge, 1])
        owner, edge, at_x, at_y = met
        nodes[i].start = first[i]
        nodes[owner].leave(edge, (at_x, at_y), i)
    return _walked(nodes)


def with_parts(rings: Sequence[Ring]) -> Ring:
    """One ring for several: seams between near corners join them all."""
    if len(rings) == 1:
        return rings[0]
    nodes = [_Node(ring=ring) for ring in rings]
    owner = np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])
    corner = np.concatenate([np.arange(len(ring)) for ring in rings])
    seams: dict[int, list[tuple[int, int]]] = {}
    for one, two in _joining(np.concatenate(rings), owner):
        seams.setdefault(int(owner[one]), []).append((one, two))
        seams.setdefault(int(owner[two]), []).append((two, one))
    waiting, reached = [0], {0}
    while waiting:
        parent = waiting.pop()
        for here, there in seams.get(parent, ()):
            child = int(owner[there])
            if child not in reached:
                reached.add(child)
                waiting.append(child)
                nodes[child].start = int(corner[there])
                x, y = rings[parent][corner[here]].tolist()
                nodes[parent].leave(int(corner[here]), (x, y), child)
    return _walked(nodes)


def _joining(corners: Ring, owner: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Pairs of corners that join all rings: Kruskal's tree of near ones, then of what is left."""
    distances, near = _tree(corners).query(corners, k=min(_NEAR, len(corners)))
    one = np.repeat(np.arange(len(corners)), near.shape[1])
    two, far = near.ravel(), distances.ravel()
    other = owner[one] != owner[two]
    one, two, far = one[other], two[other], far[other]
    group = list(range(int(owner[-1]) + 1))

    def top(number: int) -> int:
        while group[number] != number:
            group[number] = group[group[number]]
            number = group[number]
        return number

    pairs: list[tuple[int, int]] = []
    for i in np.argsort(far, kind="stable").tolist():
        first, second = top(int(owner[one[i]])), top(int(owner[two[i]]))
        if first != second:
            group[max(first, second)] = min(first, second)
            pairs.append((int(one[i]), int(two[i])))
    tops = np.array([top(number) for number in range(len(group))])[owner]
    known = _Corners()
    order = np.argsort(tops, kind="stable")
    begins = np.flatnonzero(np.diff(tops[order], prepend=-1))
    for some in np.split(order, begins[1:]):
        if known:
            pairs.append(known.nearest(corners, some))
        known.add(corners, some)
    return pairs


class _Rows:
    """Edges of rings by the rows of pixels that they pass."""

    def __init__(self, rings: Sequence[Ring]) -> None:
        self._from = np.concatenate(rings)
        self._to = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
        lengths = [len(ring) for ring in rings]
        self._ring = np.repeat(np.arange(len(rings)), lengths)
        self._edge = np.concatenate([np.arange(length) for length in lengths])
        top = np.floor(np.minimum(self._from[:, 1], self._to[:, 1])).astype(np.int64)
        foot = np.floor(np.maximum(self._from[:, 1], self._to[:, 1])).astype(np.int64)
        counts = foot - top + 1
        numbers = np.repeat(np.arange(len(top)), counts)
        within = np.arange(len(numbers)) - np.repeat(np.cumsum(counts) - counts, counts)
        rows = top[numbers] + within
        order = np.argsort(rows, kind="stable")
        self._rows, self._numbers = rows[order], numbers[order]

    def left_of(
        self, x: float, y: float, rank: npt.NDArray[np.int64], below: int
    ) -> tuple[int, int, float, float] | None:
        """Ring, edge and place of the nearest edge at the left of a point, or at it.

        Args:
            x: Of the point.
            y: Of the point.
            rank: Of every ring.
            below: Rings of this rank and above it are looked through.
        """
        row = int(np.floor(y))
        first, last = np.searchsorted(self._rows, [row, row + 1])
        some = self._numbers[first:last]
        some = some[rank[self._ring[some]] < below]
        (x1, y1), (x2, y2) = self._from[some].T, self._to[some].T
        crossing = (y1 > y) != (y2 > y)
        at = np.full(len(some), -np.inf)
        share = (y - y1[crossing]) / (y2 - y1)[crossing]
        at[crossing] = x1[crossing] + share * (x2 - x1)[crossing]
        at[(x1 == x) & (y1 == y)] = x
        at[at > x] = -np.inf
        if len(at) == 0 or at.max() == -np.inf:
            return None
        best = int(at.argmax())
        number = some[best]
        return int(self._ring[number]), int(self._edge[number]), float(at[best]), y


def _tree(corners: Ring) -> cKDTree:
    from scipy.spatial import cKDTree  # slow to import, and few outlines need it

    return cKDTree(corners)


class _Corners:
    """Corners that come in groups, searched for the nearest.

    Trees of doubling sizes, as in the logarithmic method of Bentley and Saxe (1980).
    """

    def __init__(self) -> None:
        self._trees: list[tuple[npt.NDArray[np.int64], cKDTree]] = []

    def __bool__(self) -> bool:
        return bool(self._trees)

    def add(self, corners: Ring, some: npt.NDArray[np.int64]) -> None:
        """Take some of the corners."""
        while self._trees and len(self._trees[-1][0]) <= len(some):
            some = np.concatenate([self._trees.pop()[0], some])
        self._trees.append((some, _tree(corners[some])))

    def nearest(self, corners: Ring, some: npt.NDArray[np.int64]) -> tuple[int, int]:
        """The nearest pair of one of these and one that is known."""
        found = []
        for others, tree in self._trees:
            distances, places = tree.query(corners[some])
            here = int(np.argmin(distances))
            found.append((float(distances[here]), int(some[here]), int(others[places[here]])))
        _, here, there = min(found)
        return here, there


def _walked(nodes: Sequence[_Node]) -> Ring:
    """The corners of the first node's ring, with those of all others where seams lead to them."""
    points: list[_Point] = []
    ways = [_way(nodes[0], closed=False)]
    while ways:
        step = next(ways[-1], None)
        if step is None:
            ways.pop()
        elif isinstance(step, int):
            ways.append(_way(nodes[step], closed=True))
        else:
            points.append(step)
    return np.array(points, np.float64)


def _way(node: _Node, *, closed: bool) -> Iterator[_Point | int]:
    """Corners from the start on, and nodes where seams leave, their ends there and back."""
    corners: list[_Point] = [(x, y) for x, y in node.ring.tolist()]
    count = len(corners)
    for number in range(node.start, node.start + count):
        yield corners[number % count]
        for _, point, to in sorted(node.seams.get(number % count, ())):
            yield point
            yield to
            yield point
    if closed:
        yield corners[node.start]
