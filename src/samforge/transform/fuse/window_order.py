"""Tokens stay in window order between layers with global attention.

Matches: chains of reshape, permute, reshape that bring an image's tokens into windows
(``partition``) and back, and the operators between them that treat every token alike: LayerNorm,
linear, activations, residual additions.

Becomes: the same operators on tokens in window order. A partition and the way back before it cancel
through everything that lies between; what remains stands in the layers that attend globally. Which
tensors keep which order is a minimum cut: the fewest channels are moved.

Why: SAM 3's ViT makes windows and takes them apart again in each of its 28 windowed layers, twice
the whole residual stream through memory for nothing.

Exact: the same numbers are computed from the same numbers, in another place.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx

from samforge.transform.fuse.cut import NEVER, minimum_cut
from samforge.transform.fuse.editor import GraphEditor
from samforge.transform.fuse.match import (
    argument,
    aten,
    expressions,
    is_call,
    is_tensor,
    place,
    same_size,
    value_of,
)
from samforge.transform.fuse.noops import PADS, PERMUTES, RESHAPES, order_of
from samforge.transform.fuse.result import Fusion, FusionCount

PER_TOKEN = (
    aten.linear.default,
    aten.layer_norm.default,
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.mul.Tensor,
    aten.div.Tensor,
    aten.neg.default,
    aten.gelu.default,
    aten.relu.default,
    aten.silu.default,
    aten.sigmoid.default,
    aten.tanh.default,
    aten.to.dtype,
)
"""Operators that compute each token from the same token alone."""
WINDOWS, IMAGE = "windows", "image"
"""The two orders, and the two ends of the cut's graph."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chain:
    """Reshape, permute, reshape of (…, channels) that leaves the channels where they are."""

    source: fx.Node
    """What is reordered."""
    end: fx.Node
    """What comes out."""
    given: tuple[Any, ...]
    """Shape before, without channels."""
    between: tuple[Any, ...]
    """Shape while permuting, without channels."""
    order: tuple[int, ...]
    """Of the axes, without channels."""
    taken: tuple[Any, ...]
    """Shape after, without channels."""

    @property
    def key(self) -> Hashable:
        """The same for chains that reorder alike."""
        return (self.given, self.between, self.order, self.taken)

    @property
    def inverse_key(self) -> Hashable:
        """Key of the chain that undoes this one."""
        between = tuple(self.between[axis] for axis in self.order)
        order = tuple(self.order.index(axis) for axis in range(len(self.order)))
        return (self.taken, between, order, self.given)


def keep_window_order(editor: GraphEditor) -> FusionCount:
    """Move partitions to where they are needed, one window size after the other."""
    tally = FusionCount()
    done: set[Hashable] = set()
    while True:
        by_key: dict[Hashable, list[Chain]] = defaultdict(list)
        for chain in _chains(editor):
            by_key[chain.key].append(chain)
        pairs = (
            (chains, by_key[chains[0].inverse_key])
            for key, chains in list(by_key.items())
            if key not in done and chains[0].inverse_key in by_key
        )
        pair = next(pairs, None)
        if pair is None:
            break
        chain = pair[0][0]
        done |= {chain.key, chain.inverse_key}
        if max(map(_dynamic, (chain.given, chain.between, chain.taken))) > 1:
            tally.left.append(f"{place(chain.source)}: more than one axis is dynamic")
            continue
        tally.fired += _Reorder(editor, *pair).apply()
    tally.left.extend(_padded(editor))
    return tally


def _chains(editor: GraphEditor) -> Iterator[Chain]:
    for end in editor.calls(*RESHAPES):
        permute = end.args[0]
        if not is_call(permute, *PERMUTES) or len(permute.users) > 1:
            continue
        first = permute.args[0]
        if not is_call(first, *RESHAPES) or len(first.users) > 1:
            continue
        source, order = first.all_input_nodes[0], order_of(permute)
        shapes = [expressions(value_of(node).shape) for node in (source, first, end)]
        given, between, taken = (shape[:-1] for shape in shapes)
        fixed = order[-1] == len(order) - 1 and len({shape[-1] for shape in shapes}) == 1
        if fixed and given != taken:
            yield Chain(
                source=source,
                end=end,
                given=given,
                between=between,
                order=order[:-1],
                taken=taken,
            )


class _Reorder:
    """One window size: what goes in, what comes back, and what lies between."""

    def __init__(self, editor: GraphEditor, into: list[Chain], back: list[Chain]) -> None:
        self.editor = editor
        self.into, self.back = into[0], back[0]
        self.image = self.into.given
        self.ends_by_start = {_start(chain): chain.end for chain in into}
        self.source_by_end = {chain.end: chain.source for chain in back}
        self.region = {n: None for n in editor.calls(*PER_TOKEN) if self._is_per_token(n)}
        self.converted: dict[tuple[fx.Node, str], fx.Node] = {}

    def apply(self) -> int:
        """Rewrite; how many chains fewer there are."""
        before = self._count()
        for end, source in self.source_by_end.items():
            self._bypass(end, source)
        edges = self._edges()
        cost, windowed = minimum_cut(edges, WINDOWS, IMAGE)
        as_it_is = edges | {(node, IMAGE): NEVER for node in self.region}
        if cost < minimum_cut(as_it_is, WINDOWS, IMAGE)[0]:
            for node in [node for node in self.region if node in windowed]:
                self._rewrite(node, windowed)
        self.editor.sweep()
        return before - self._count()

    def _count(self) -> int:
        return sum(chain.key in (self.into.key, self.back.key) for chain in _chains(self.editor))

    def _is_per_token(self, node: fx.Node) -> bool:
        """Whether a node computes tokens in image order, each from itself and constants."""
        if not self._in_image_order(node):
            return False
        if is_call(node, aten.layer_norm.default) and len(argument(node, 1, "shape")) != 1:
            return False
        if is_call(node, aten.linear.default, aten.layer_norm.default):
            return self._in_image_order(node.args[0])
        return all(
            self._in_image_order(source) or _is_per_channel(source, len(self.into.taken))
            for source in node.all_input_nodes
        )

    def _in_image_order(self, node: object) -> bool:
        return is_tensor(node) and expressions(value_of(node).shape)[:-1] == self.image

    def _edges(self) -> dict[tuple[Hashable, Hashable], int]:
        """The cut's graph: a value that is read in the other order costs its channels, once."""
        values = dict(self.region)
        for node in self.region:
            values |= {n: None for n in node.all_input_nodes if self._in_image_order(n)}
        edges: dict[tuple[Hashable, Hashable], int] = {}
        for value in values:
            made: Hashable = value
            if value not in self.region:
                made = WINDOWS if value in self.source_by_end else IMAGE
            for user in value.users:
                read: Hashable = user
                if user not in self.region:
                    read = WINDOWS if user in self.ends_by_start else IMAGE
                channels = value_of(value).shape[-1]
                edges[made, (value, IMAGE)] = edges[(value, WINDOWS), made] = channels
                edges[(value, IMAGE), read] = edges[read, (value, WINDOWS)] = NEVER
        return edges

    def _rewrite(self, node: fx.Node, windowed: Container[Hashable]) -> None:
        """Let one node compute windows, and give others what they read."""
        for source in node.all_input_nodes:
            if source not in windowed and self._in_image_order(source):
                node.replace_input_with(source, self._in_windows(source))
        self.editor.refresh(node)
        # Listed first: the bypass adds readers that want windows.
        others = [u for u in node.users if u not in windowed and u not in self.ends_by_start]
        self._bypass(node, node)
        for user in others:
            user.replace_input_with(node, self._in_image(node))

    def _bypass(self, image: fx.Node, windows: fx.Node) -> None:
        """Let the readers of an image's windows read those that are there."""
        for user in list(image.users):
            if user in self.ends_by_start:
                self.ends_by_start[user].replace_all_uses_with(windows)

    def _in_windows(self, source: fx.Node) -> fx.Node:
        if source in self.source_by_end:
            return self.source_by_end[source]
        if (source, WINDOWS) not in self.converted:
            end = self._reorder(source, self.into)
            self._bypass(source, end)
            self.converted[source, WINDOWS] = end
        return self.converted[source, WINDOWS]

    def _in_image(self, node: fx.Node) -> fx.Node:
        if (node, IMAGE) not in self.converted:
            self.converted[node, IMAGE] = self._reorder(node, self.back)
        return self.converted[node, IMAGE]

    def _reorder(self, source: fx.Node, chain: Chain) -> fx.Node:
        """Reorder a value right behind where it is made."""
        channels = value_of(source).shape[-1]
        node, behind = source, source.next
        for target, sizes in (
            (aten.reshape.default, [*_static(chain.between), channels]),
            (aten.permute.default, [*chain.order, len(chain.order)]),
            (aten.reshape.default, [*_static(chain.taken), channels]),
        ):
            node = self.editor.call(target, node, sizes, like=source, before=behind)
        return node


def _start(chain: Chain) -> fx.Node:
    return chain.end.all_input_nodes[0].all_input_nodes[0]


def _is_per_channel(node: fx.Node, rank: int) -> bool:
    """Whether a value is the same for every token, in either order."""
    shape = value_of(node).shape if is_tensor(node) else ()
    return is_tensor(node) and len(shape) <= rank + 1 and all(size == 1 for size in shape[:-1])


def _dynamic(shape: tuple[Any, ...]) -> int:
    return sum(not isinstance(size, int) for size in shape)


def _static(shape: tuple[Any, ...]) -> list[int]:
    """A shape to ask for: its only dynamic size is inferred."""
    return [size if isinstance(size, int) else -1 for size in shape]


def _padded(editor: GraphEditor) -> Iterator[str]:
    """Say where windows are padded, one line for each size."""
    found: dict[str, list[fx.Node]] = defaultdict(list)
    for chain in _chains(editor):
        if is_call(chain.source, *PADS):
            before = value_of(chain.source.all_input_nodes[0]).shape
            after = value_of(chain.source).shape
            grown = [
                f"{size} to {padded}"
                for size, padded in zip(before, after, strict=True)
                if not same_size(size, padded)
            ]
            found[" and ".join(grown)].append(chain.source)
    for sizes, pads in found.items():
        more = f" and {len(pads) - 1} more" if len(pads) > 1 else ""
        yield (
            f"{place(pads[0])}{more}: windows are padded ({sizes} tokens), and "
            "padding has to be zero again in each layer"
        )


WINDOW_ORDER = Fusion(
    name="window-order",
    summary="window partition and its undoing between two layers -> nothing",
    exact=True,
    apply=keep_window_order,
)
