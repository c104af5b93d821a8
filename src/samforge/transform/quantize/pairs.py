"""Which weights can be evened out: what writes channels, and everything that reads them.

The channels of a writer can be divided by anything positive if all readers are linear and the
factors reach them unchanged; their columns are multiplied by the same. So LayerNorms before
linears, values before the output projection of attention, linears and convolutions with nothing or
ReLU between, the factor of a gated MLP that no activation changes. Found in the graph, by what
operators do to channels: no name of a module counts. A channel that is read by anything else keeps
its size, and the others of the same weight do not.

Sources: Nagel et al., Data-free quantization through weight equalization and bias correction,
https://arxiv.org/abs/1906.04721, section 4.1, for pairs of weights; Xiao et al., SmoothQuant,
https://arxiv.org/abs/2211.10438, for norms and for the factors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from samforge.core.recipe import Quantization
from samforge.transform.quantize.channels import End, along_axis, channels_in, follow, labels_of
from samforge.transform.quantize.patterns import check_patterns, matches, path_pattern
from samforge.transform.quantize.sites import (
    INPUT_AXES,
    WEIGHTED,
    Site,
    arguments,
    aten,
    path_of,
    sites_from_graph,
)

NORMS: dict[Any, tuple[str, int]] = {
    aten.layer_norm.default: ("layer_norm", -1),
    aten.group_norm.default: ("group_norm", 1),
}
"""Norms with a weight: their name, and the axis of their channels."""
GROUPS = 6
"""Place of the groups among the arguments of convolutions of both kinds."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Reader:
    """A linear or convolution whose input channels are multiplied."""

    path: str
    """Module path."""
    weight: str
    """Name of its weight."""
    column_axis: int
    """Axis of the weight that counts input channels."""
    input: str
    """Node it reads."""
    input_axis: int
    """Axis of what it reads that counts channels."""
    channels: Tensor
    """(input channels,) which channel of the writer each is."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Smoothable:
    """A weight whose output channels can be divided, and all that reads them."""

    writer: str
    """Module path."""
    operator: str
    """``layer_norm``, ``group_norm``, ``linear``, ``conv2d`` or ``conv_transpose2d``."""
    weight: str
    """Name of its weight."""
    channel_axis: int
    """Axis of the weight that counts output channels."""
    bias: str | None
    """Name of its bias."""
    free: Tensor
    """(channels,) bool: which may be divided; the others have readers that are not linear."""
    readers: Mapping[str, Reader]
    """By node."""

    @property
    def inputs(self) -> dict[str, Reader]:
        """One reader of each tensor that is read, by node."""
        return {reader.input: reader for reader in self.readers.values()}


@dataclass(frozen=True, kw_only=True, slots=True)
class NotSmoothed:
    """A weight in front of a quantized operator that stays as it is."""

    writer: str
    """Module path."""
    reason: str
    """Why."""


def smoothable_pairs(
    graph: GraphModule, sites: tuple[Site, ...], part: str, settings: Quantization
) -> tuple[tuple[Smoothable, ...], tuple[NotSmoothed, ...]]:
    """Find the weights that can be evened out, and those before quantized operators that cannot.

    Returns:
        Both in the order of the graph.

    Raises:
        SettingError: A pattern of this part matches nothing.
    """
    _check_own_patterns(graph, part, settings)
    search = _Search(
        sites={site.node: site.path for site in sites}, uses=_uses(graph), part=part, claimed={}
    )
    found: list[Smoothable] = []
    left: list[NotSmoothed] = []
    for node in graph.graph.nodes:
        one = search.result(node, settings)
        if isinstance(one, Smoothable):
            found.append(one)
            search.claimed.update(dict.fromkeys(one.readers, one.writer))
        elif one is not None:
            left.append(one)
    return tuple(found), tuple(left)


def norm_paths(graph: GraphModule) -> tuple[str, ...]:
    """Module paths of all norms with a weight."""
    norms = (node for node in graph.graph.nodes if node.target in NORMS)
    return tuple(dict.fromkeys(map(_writer_path, norms)))


def _check_own_patterns(graph: GraphModule, part: str, settings: Quantization) -> None:
    """Patterns that may speak of several parts are checked by the build."""
    own = [pattern for pattern in settings.smooth_skip if pattern.startswith(f"{part}/")]
    if own:
        paths = (*norm_paths(graph), *(site.path for site in sites_from_graph(graph)))
        check_patterns("quantization.smooth_skip", own, {part: paths})


def _uses(graph: GraphModule) -> dict[str, int]:
    """How many operators read each constant, over all nodes that fetch it."""
    uses: dict[str, int] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            uses[str(node.target)] = uses.get(str(node.target), 0) + len(node.users)
    return uses


@dataclass(frozen=True, kw_only=True, slots=True)
class _Search:
    """What is known of the graph while writers are looked at."""

    sites: Mapping[str, str]
    """Module paths of the quantized operators, by node."""
    uses: Mapping[str, int]
    """How many operators read each constant."""
    part: str
    """Name of the part."""
    claimed: dict[str, str]
    """Readers whose columns are multiplied already, and for which writer."""

    def result(self, node: Node, settings: Quantization) -> Smoothable | NotSmoothed | None:
        """What can be done about one operator; None where it writes for nothing quantized."""
        axes = _axes(node)
        if axes is None:
            return None
        operator, axis, channel_axis = axes
        labels = labels_of(node, axis)
        known, ends = follow(node, labels)
        free = torch.ones(labels.shape[axis], dtype=torch.bool)
        readers: dict[str, Reader] = {}
        reasons: list[str] = []
        for end in ends:
            reader = self._reader(end.node, known)
            if isinstance(reader, Reader):
                readers[end.node.name] = reader
                continue
            reasons.append(reader)
            for source in end.sources:
                free[channels_in(known[source])] = False
        # A reader of nothing but channels that stay has nothing to multiply.
        readers = {name: one for name, one in readers.items() if bool(free[one.channels].any())}
        path = _writer_path(node)
        behind = [self.sites[name] for name in self._reached(ends, known)]
        if not behind:
            return None
        reason = self._obstacle(node) or _choice((path, *behind), self.part, settings)
        if reason is None and not any(name in self.sites for name in readers):
            reason = reasons[0]
        if reason is not None:
            return NotSmoothed(writer=path, reason=reason)
        _, weight, bias = _tensors(node)
        assert weight is not None  # noqa: S101  an obstacle otherwise
        return Smoothable(
            writer=path,
            operator=operator,
            weight=str(weight.target),
            channel_axis=channel_axis,
            bias=None if bias is None else str(bias.target),
            free=free,
            readers=readers,
        )

    def _reached(self, ends: Iterable[End], known: Mapping[Node, Any]) -> list[str]:
        """Quantized operators whose input is labelled."""
        nodes = (end.node for end in ends)
        return [n.name for n in nodes if n.name in self.sites and arguments(n)[0] in known]

    def _reader(self, node: Node, known: Mapping[Node, Any]) -> Reader | str:
        """The reader that an operator is, or why it is none."""
        source = next((one for one in arguments(node)[:1] if isinstance(one, Node)), None)
        others = [one for one in node.all_input_nodes if one is not source and one in known]
        if node.target not in WEIGHTED or source is None or source not in known or others:
            return f"its output is also read by {_operator(node)}"
        _, weight, _ = _tensors(node)
        if weight is None:
            return f"a {_operator(node)} behind it has a computed weight"
        name = str(weight.target)
        if self.uses[name] > 1:
            return f"{name} is used more than once"
        if node.name in self.claimed:
            return f"{name} is evened out with {self.claimed[node.name]}"
        if _groups(node) != 1:
            return f"its output is also read by a {_operator(node)} in groups"
        input_axis, column_axis = INPUT_AXES[WEIGHTED[node.target][0]]
        channels = along_axis(known[source], input_axis)
        if channels is None:
            return f"its channels are mixed before {_operator(node)}"
        return Reader(
            path=path_of(node, name),
            weight=name,
            column_axis=column_axis,
            input=source.name,
            input_axis=input_axis,
            channels=channels,
        )

    def _obstacle(self, node: Node) -> str | None:
        _, weight, bias = _tensors(node)
        if weight is None:
            return "its weight is no constant"
        if bias is not None and bias.op != "get_attr":
            return "its bias is no constant"
        names = [str(one.target) for one in (weight, bias) if one is not None]
        shared = [name for name in names if self.uses[name] > 1]
        return f"{shared[0]} is used more than once" if shared else None


def _axes(node: Node) -> tuple[str, int, int] | None:
    """A writer's name, the axis of its channels in its output, and that in its weight."""
    if node.target in NORMS:
        operator, axis = NORMS[node.target]
        if operator == "layer_norm" and len(arguments(node)[1]) != 1:
            return None
        return operator, axis % len(node.meta["val"].shape), 0
    if node.target in WEIGHTED:
        operator, channel_axis = WEIGHTED[node.target]
        if operator == "conv_transpose2d" and _groups(node) != 1:
            return None
        axis = INPUT_AXES[operator][0]
        return operator, axis % len(node.meta["val"].shape), channel_axis
    return None


def _tensors(node: Node) -> tuple[Node, Node | None, Node | None]:
    """Input, constant weight and bias of a writer or reader."""
    given = (*arguments(node), None, None)
    source, weight, bias = (given[0], *given[2:4]) if node.target in NORMS else given[:3]
    constant = isinstance(weight, Node) and weight.op == "get_attr"
    return source, weight if constant else None, bias


def _groups(node: Node) -> int:
    given = arguments(node)
    return 1 if node.target is aten.linear.default or len(given) <= GROUPS else int(given[GROUPS])


def _writer_path(node: Node) -> str:
    _, weight, _ = _tensors(node)
    if weight is None:
        return node.name
    return path_of(node, str(weight.target))


def _operator(node: Node) -> str:
    if node.op == "output":
        return "the part's caller"
    return str(getattr(node.target, "overloadpacket", node.target)).removeprefix("aten.")


def _choice(paths: Iterable[str], part: str, settings: Quantization) -> str | None:
    """Why the user leaves a weight alone; its own path or that of a reader counts."""
    if not settings.smooth:
        return "smoothing is off"
    own = tuple(paths)
    for pattern in settings.smooth_skip:
        path = path_pattern(pattern, part) if "/" in pattern else pattern
        if path is not None and any(matches(path, name) for name in own):
            return f"left alone by '{pattern}'"
    return None
