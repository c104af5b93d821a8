"""Minimum cut of a small directed graph.

Source: the augmenting path algorithm of Edmonds and Karp (1972), https://doi.org/10.1145/321694.321699.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable, Mapping
from itertools import pairwise

NEVER = 10**12
"""Capacity of an edge that must not be cut."""

Edges = Mapping[tuple[Hashable, Hashable], int]


def minimum_cut(edges: Edges, source: Hashable, sink: Hashable) -> tuple[int, set[Hashable]]:
    """Part the source from the sink at the smallest cost.

    Args:
        edges: Capacity of each edge, by its two ends.
        source: One node.
        sink: The other.

    Returns:
        The cost of the cut, and the nodes on the source's side: as few as possible.
    """
    left: dict[Hashable, dict[Hashable, int]] = defaultdict(lambda: defaultdict(int))
    for (start, end), capacity in edges.items():
        left[start][end] += capacity
    cost = 0
    while True:
        came_from = _reachable(left, source)
        if sink not in came_from:
            return cost, set(came_from)
        path = [sink]
        while path[-1] != source:
            path.append(came_from[path[-1]])
        steps = [(start, end) for end, start in pairwise(path)]
        flow = min(left[start][end] for start, end in steps)
        for start, end in steps:
            left[start][end] -= flow
            left[end][start] += flow
        cost += flow


def _reachable(
    left: Mapping[Hashable, Mapping[Hashable, int]], source: Hashable
) -> dict[Hashable, Hashable]:
    """Nodes that more flow could reach, each with the one before it on a shortest path."""
    came_from = {source: source}
    queue = deque([source])
    while queue:
        start = queue.popleft()
        for end, capacity in left[start].items():
            if capacity > 0 and end not in came_from:
                came_from[end] = start
                queue.append(end)
    return came_from
