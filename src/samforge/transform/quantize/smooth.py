"""SmoothQuant: move the spread of a LayerNorm's channels into the weights behind it.

A few channels of a ViT's LayerNorm outputs are a hundred times larger than the rest. One scale for
all of them leaves the rest a handful of steps. Dividing channel ``j`` by ``s_j`` in the
LayerNorm's weight and bias and multiplying column ``j`` of the linears behind it changes nothing
but the ranges. With ``s_j`` a power of two it changes no bit either.

Source: Xiao et al., SmoothQuant, https://arxiv.org/abs/2211.10438, equation 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from samforge.core.recipe import Quantization
from samforge.transform.quantize.patterns import check_patterns, matches, path_pattern
from samforge.transform.quantize.sites import (
    Site,
    arguments,
    aten,
    constant,
    replace_constant,
    sites_from_graph,
)

UNCHANGED = {aten.contiguous.default, aten.clone.default, aten.dropout.default, aten.to.dtype}
"""Give every element back as it is, in its place."""
RESHAPED = {
    aten.view.default,
    aten.reshape.default,
    aten.unflatten.int,
    aten.flatten.using_ints,
    aten.unsqueeze.default,
    aten.expand.default,
}
"""Keep the order of elements."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Smoothable:
    """A LayerNorm that feeds linears and nothing else."""

    norm: str
    """Module path of the LayerNorm."""
    weight: str
    """Name of its weight."""
    bias: str | None
    """Name of its bias."""
    linears: Mapping[str, str]
    """Names of the weights of the linears behind it, by their nodes."""
    inputs: tuple[str, ...]
    """Nodes they read: its output, and its output in windows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NotSmoothed:
    """A LayerNorm that feeds a quantized linear and stays as it is."""

    norm: str
    """Module path of the LayerNorm."""
    reason: str
    """Why."""


def smoothable_norms(
    graph: GraphModule, sites: tuple[Site, ...], part: str, settings: Quantization
) -> tuple[tuple[Smoothable, ...], tuple[NotSmoothed, ...]]:
    """Find the LayerNorms that can be smoothed, and those that feed linears but cannot.

    Raises:
        SettingError: A pattern of this part matches nothing.
    """
    _check_own_patterns(graph, part, settings)
    quantized = {site.node: site.path for site in sites if site.operator == "linear"}
    uses = _uses(graph)
    found: list[Smoothable] = []
    left: list[NotSmoothed] = []
    for node in graph.graph.nodes:
        if node.target is not aten.layer_norm.default:
            continue
        readers, strangers = _readers(node)
        behind = [quantized[reader.name] for reader in readers if reader.name in quantized]
        if not behind:
            continue
        reason = _obstacle(node, readers, strangers, uses) or _choice(
            (_norm_path(node), *behind), part, settings
        )
        if reason:
            left.append(NotSmoothed(norm=_norm_path(node), reason=reason))
        else:
            found.append(_smoothable(node, readers))
    return tuple(found), tuple(left)


def norm_paths(graph: GraphModule) -> tuple[str, ...]:
    """Module paths of all LayerNorms."""
    norms = graph.graph.find_nodes(op="call_function", target=aten.layer_norm.default)
    return tuple(dict.fromkeys(map(_norm_path, norms)))


def _check_own_patterns(graph: GraphModule, part: str, settings: Quantization) -> None:
    """Patterns that may speak of several parts are checked by the build."""
    own = [pattern for pattern in settings.smooth_skip if pattern.startswith(f"{part}/")]
    if own:
        paths = (*norm_paths(graph), *(site.path for site in sites_from_graph(graph)))
        check_patterns("quantization.smooth_skip", own, {part: paths})


def _smoothable(norm: Node, readers: Sequence[Node]) -> Smoothable:
    _, _, weight, *rest = arguments(norm)
    return Smoothable(
        norm=_norm_path(norm),
        weight=str(weight.target),
        bias=str(rest[0].target) if rest and rest[0] is not None else None,
        linears={reader.name: str(arguments(reader)[1].target) for reader in readers},
        inputs=tuple(dict.fromkeys(arguments(reader)[0].name for reader in readers)),
    )


def _uses(graph: GraphModule) -> dict[str, int]:
    """How many operators read each constant, over all nodes that fetch it."""
    uses: dict[str, int] = {}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            uses[str(node.target)] = uses.get(str(node.target), 0) + len(node.users)
    return uses


def _norm_path(node: Node) -> str:
    weight = next(iter(arguments(node)[2:3]), None)
    if isinstance(weight, Node) and weight.op == "get_attr":
        return str(weight.target).removesuffix(".weight")
    return node.name


def _readers(norm: Node) -> tuple[list[Node], list[Node]]:
    """Linears that read a LayerNorm, through moves that keep its channels last, and the others."""
    channels = norm.meta["val"].shape[-1]
    linears: dict[Node, None] = {}
    strangers: list[Node] = []
    pending = list(norm.users)
    sources = {norm}
    while pending:
        user = pending.pop(0)
        if user.target is aten.linear.default and arguments(user)[0] in sources:
            linears[user] = None
        elif _keeps_channels_last(user, channels):
            sources.add(user)
            pending.extend(user.users)
        elif user.target not in (aten.sym_size.int, aten._assert_tensor_metadata.default):  # noqa: SLF001
            strangers.append(user)
    return list(linears), strangers


def _keeps_channels_last(node: Node, channels: int) -> bool:
    """Whether an operator only moves whole rows of channels."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.shape[-1] != channels:
        return False
    if node.target in UNCHANGED | RESHAPED:
        # Rows stay whole where the last axis keeps its length.
        return True
    last, given = value.ndim - 1, arguments(node)[1:]
    if node.target is aten.permute.default:
        return given[0][-1] in (-1, last)
    if node.target is aten.transpose.int:
        return last not in {axis % value.ndim for axis in given[:2]}
    if node.target is aten.pad.default:
        # Padding is 0, and so it stays under any factor.
        return len(given) == 1 and not any(given[0][:2])
    return False


def _obstacle(
    norm: Node, readers: list[Node], strangers: list[Node], uses: Mapping[str, int]
) -> str | None:
    if strangers:
        return f"its output is also read by {_operator(strangers[0])}"
    tensors = [tensor for tensor in arguments(norm)[2:4] if isinstance(tensor, Node)]
    if not tensors or any(tensor.op != "get_attr" for tensor in tensors):
        return "its weight is no constant"
    weights: list[Node] = [arguments(reader)[1] for reader in readers]
    if any(weight.op != "get_attr" for weight in weights):
        return "a linear behind it has a computed weight"
    shared = [str(tensor.target) for tensor in (*tensors, *weights) if uses[str(tensor.target)] > 1]
    if shared:
        return f"{shared[0]} is used more than once"
    return None


def _operator(node: Node) -> str:
    return str(getattr(node.target, "overloadpacket", node.target)).removeprefix("aten.")


def _choice(paths: Iterable[str], part: str, settings: Quantization) -> str | None:
    """Why the user leaves a LayerNorm alone; its own path or that of a linear behind it counts."""
    if not settings.smooth:
        return "smoothing is off"
    own = tuple(paths)
    for pattern in settings.smooth_skip:
        path = path_pattern(pattern, part) if "/" in pattern else pattern
        if path is not None and any(matches(path, name) for name in own):
            return f"left alone by '{pattern}'"
    return None


def smoothing_factors(activation_max: Tensor, weight_max: Tensor, alpha: float) -> Tensor:
    """Choose what each channel is divided by.

    Args:
        activation_max: (channels,), largest magnitude that calibration saw.
        weight_max: (channels,), largest magnitude in the columns of the linears.
        alpha: 0 leaves activations as they are, 1 makes all channels equally large.

    Returns:
        (channels,) powers of two around 1: exact in any float format. A channel without activation
        or weight keeps 1.
    """
    spread = alpha * activation_max.double().log2() - (1 - alpha) * weight_max.double().log2()
    used = spread.isfinite()
    if not bool(used.any()):
        return torch.ones_like(activation_max)
    spread = torch.where(used, spread - spread[used].median(), 0.0)
    return torch.exp2(spread.round()).to(activation_max.dtype)


def column_max(graph: GraphModule, norm: Smoothable) -> Tensor:
    """Largest magnitude of each input column over all linears behind a LayerNorm."""
    columns = [constant(graph, name).detach().abs().amax(0) for name in norm.linears.values()]
    return torch.stack(columns).amax(0)


def divide_norm(graph: GraphModule, norm: Smoothable, factors: Tensor) -> None:
    """Divide a LayerNorm's output by its factors, in its weight and bias."""
    for name in (norm.weight, norm.bias):
        if name is not None:
            replace_constant(graph, name, constant(graph, name).detach() / factors)
