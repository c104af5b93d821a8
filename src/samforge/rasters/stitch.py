"""Objects at seams: pieces of neighbouring windows that show the same thing, found and joined.

Two pieces show the same thing where they share at least half of the smaller one, both counted
inside the strip that their windows share (intersection over the smaller). Pieces tied so form a
cluster, by union-find. A cluster is closed as soon as every window that reaches its pieces is done:
then it cannot change any more, and leaves memory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from samforge.rasters.grid import Grid, Place, intersection
from samforge.rasters.pieces import Piece

SAME = 0.5
"""Share of the smaller piece, within the strip, from which two pieces show the same thing."""


@dataclass(kw_only=True, slots=True, eq=False)
class Cluster:
    """Pieces that belong together."""

    pieces: list[Piece]
    """All of one phrase."""
    shared: dict[tuple[int, int], int] = field(default_factory=dict)
    """Pixels shared by tied pairs, by the pieces' ``id``, both ways round."""

    def overlap(self, one: Piece, other: Piece) -> int:
        """Pixels that two pieces share; 0 where they are not tied."""
        return self.shared.get((id(one), id(other)), 0)


class Stitcher:
    """Takes the pieces of window after window, and gives clusters that are complete."""

    def __init__(self, grid: Grid) -> None:
        """Begin with nothing.

        Args:
            grid: Where windows lie.
        """
        self._grid = grid
        self._clusters: dict[int, Cluster] = {}
        """Open ones by the ``id`` of each of their pieces."""
        self._windows: dict[Place, list[Piece]] = {}
        """Pieces of open clusters."""
        self._done: set[Place] = set()

    @property
    def done(self) -> Collection[Place]:
        """Windows that were added, or for which nothing will come."""
        return self._done

    @property
    def held(self) -> int:
        """Pieces in memory."""
        return len(self._clusters)

    def add(self, place: Place, pieces: Iterable[Piece]) -> None:
        """Take what a window found; nothing where it was skipped or failed."""
        mine = list(pieces)
        for piece in mine:
            self._clusters[id(piece)] = Cluster(pieces=[piece])
        for neighbour in self._grid.over(self._grid.box(place)):
            if neighbour != place and neighbour in self._windows:
                self._tie(place, mine, neighbour)
        if mine:
            self._windows[place] = mine
        self._done.add(place)

    def closed(self) -> Iterator[Cluster]:
        """Give away the clusters that cannot change any more, in a fixed order."""
        complete = [one for one in self._open() if not self.missing(one)]
        complete.sort(key=lambda one: min((p.box[1], p.box[0], p.order) for p in one.pieces))
        for cluster in complete:
            self._forget(cluster)
            yield cluster

    def opened(self) -> list[Cluster]:
        """Clusters that wait for windows."""
        return list(self._open())

    def missing(self, cluster: Cluster) -> set[Place]:
        """Windows that reach pieces of a cluster and are not done."""
        reached = (place for piece in cluster.pieces for place in self._grid.over(piece.box))
        return {place for place in reached if place not in self._done}

    def _open(self) -> Iterator[Cluster]:
        return iter({id(cluster): cluster for cluster in self._clusters.values()}.values())

    def _forget(self, cluster: Cluster) -> None:
        gone = {id(piece) for piece in cluster.pieces}
        for number in gone:
            del self._clusters[number]
        for place in {piece.place for piece in cluster.pieces}:
            left = [piece for piece in self._windows[place] if id(piece) not in gone]
            if left:
                self._windows[place] = left
            else:
                del self._windows[place]

    def _tie(self, place: Place, mine: list[Piece], neighbour: Place) -> None:
        strip = intersection(self._grid.box(place), self._grid.box(neighbour))
        if strip is None:
            return
        for one in mine:
            if intersection(one.box, strip) is None:
                continue
            for other in self._windows[neighbour]:
                if one.label != other.label or intersection(one.box, other.box) is None:
                    continue
                shared = one.crop.overlap(other.crop)
                if shared and shared >= SAME * min(one.within(strip), other.within(strip)):
                    self._join(one, other, shared)

    def _join(self, one: Piece, other: Piece, shared: int) -> None:
        kept, gone = self._clusters[id(one)], self._clusters[id(other)]
        if kept is not gone:
            if len(kept.pieces) < len(gone.pieces):
                kept, gone = gone, kept
            kept.pieces += gone.pieces
            kept.shared |= gone.shared
            for piece in gone.pieces:
                self._clusters[id(piece)] = kept
        kept.shared[id(one), id(other)] = kept.shared[id(other), id(one)] = shared
