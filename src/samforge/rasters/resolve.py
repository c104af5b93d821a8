"""From a cluster of pieces to the objects that they show.

A piece that no inner edge cuts is whole: it is the object. What cut pieces show of it is dropped,
and two whole pieces are never joined to one. Cut pieces that no whole one explains are joined among
themselves, as long as no window saw all of it and found nothing there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from samforge.rasters.grid import Grid, PixelBox, Place, around
from samforge.rasters.pieces import Piece
from samforge.rasters.stitch import SAME, Cluster

Found = Callable[[Place], bool]
"""Whether a window was segmented: neither failed, nor skipped, nor still to come."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StitchedObject:
    """One object of the raster."""

    label: str
    """The phrase that found it."""
    score: float
    """The best one of its pieces."""
    pieces: tuple[Piece, ...]
    """What it is the union of: one whole piece, or cut ones of several windows."""
    box: PixelBox
    """Around it."""

    @property
    def cut(self) -> bool:
        """Whether no window shows all of it."""
        return self.pieces[0].cut


def objects_from_cluster(cluster: Cluster, grid: Grid, segmented: Found) -> list[StitchedObject]:
    """Decide which objects the pieces of one closed cluster show.

    Args:
        cluster: All pieces that are tied, of any number of windows.
        grid: Where the windows lie.
        segmented: Tells whether a window had its say.
    """
    whole = _distinct(cluster, [one for one in cluster.pieces if not one.cut])
    left = [
        one
        for one in sorted(cluster.pieces, key=lambda piece: piece.order)
        if one.cut and not _explained(cluster, one, whole)
    ]
    objects = [_object([one]) for one in whole]
    for group in _groups(cluster, left):
        joined = _object(group)
        if not _denied(joined, grid, segmented):
            objects.append(joined)
    return sorted(objects, key=lambda one: (one.box[1], one.box[0], -one.score))


def _distinct(cluster: Cluster, whole: list[Piece]) -> list[Piece]:
    """Whole pieces, each object once: the best of those that windows share.

    Within one window the model has decided what is one object and what two.
    """
    kept: list[Piece] = []
    for piece in sorted(whole, key=lambda one: one.order):
        again = any(
            other.place != piece.place
            and cluster.overlap(piece, other) >= SAME * min(piece.area, other.area)
            for other in kept
        )
        if not again:
            kept.append(piece)
    return kept


def _explained(cluster: Cluster, piece: Piece, whole: list[Piece]) -> bool:
    return any(cluster.overlap(piece, one) >= SAME * piece.area for one in whole)


def _groups(cluster: Cluster, pieces: list[Piece]) -> list[list[Piece]]:
    """Cut pieces that are tied, directly or by others of them."""
    groups: list[list[Piece]] = []
    left = list(pieces)
    while left:
        group, waiting = [], [left.pop(0)]
        while waiting:
            one = waiting.pop()
            group.append(one)
            tied = [other for other in left if cluster.overlap(one, other)]
            left = [other for other in left if not cluster.overlap(one, other)]
            waiting += tied
        groups.append(group)
    return groups


def _denied(joined: StitchedObject, grid: Grid, segmented: Found) -> bool:
    """Whether a window that shows all of it, and more around it, did not find it.

    Half of a square looks like a triangle: what an edge cuts is believed where nobody sees more.
    """
    own = {piece.place for piece in joined.pieces}
    return any(
        place not in own and segmented(place) and grid.sees_whole(place, joined.box)
        for place in grid.over(joined.box)
    )


def _object(pieces: list[Piece]) -> StitchedObject:
    return StitchedObject(
        label=pieces[0].label,
        score=max(piece.score for piece in pieces),
        pieces=tuple(pieces),
        box=around([piece.box for piece in pieces]),
    )
