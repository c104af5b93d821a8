"""SmoothQuant: move the spread of channels from what writes them into the weights that read them.

A few channels of a ViT's LayerNorm outputs are a hundred times larger than the rest. One scale for
all of them leaves the rest a handful of steps. Dividing channel ``j`` by ``s_j`` in the
LayerNorm's weight and bias and multiplying column ``j`` of the linears behind it changes nothing
but the ranges. With ``s_j`` a power of two it changes no bit either. The same holds for every pair
of weights that :mod:`samforge.transform.quantize.pairs` finds; the rows of a weight that is itself
quantized have scales of their own, so dividing them costs nothing.

Source: Xiao et al., SmoothQuant, https://arxiv.org/abs/2211.10438, equation 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule

from samforge.transform.quantize.pairs import Reader, Smoothable
from samforge.transform.quantize.quantizer import along
from samforge.transform.quantize.sites import constant, replace_constant


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Smoothing:
    """A weight whose output channels are evened out."""

    pair: Smoothable
    """Which, and what reads it."""
    factors: Tensor
    """(channels,) powers of two: channels are divided by them, columns behind multiplied."""

    def columns(self, reader: Reader) -> Tensor:
        """Factor of each input channel of a reader."""
        return self.factors[reader.channels]


def smoothings_from_maxima(
    graph: GraphModule,
    pairs: tuple[Smoothable, ...],
    maxima: Mapping[str, Tensor],
    alpha: float,
) -> tuple[Smoothing, ...]:
    """Choose the factors of all pairs.

    The last pair comes first: what a weight's rows are divided by is gone when its columns are
    compared, so that a row that stands out does not speak for all of them.

    Args:
        graph: The float program.
        pairs: In the order of the graph.
        maxima: (channels,), largest magnitude that calibration saw, by the node of each input.
        alpha: SmoothQuant's.
    """
    rows: dict[str, tuple[int, Tensor]] = {}
    found: list[Smoothing] = []
    for pair in reversed(pairs):
        seen, columns = torch.zeros(len(pair.free)), torch.zeros(len(pair.free))
        for name, reader in pair.inputs.items():
            if name in maxima:  # otherwise what reads it stays float
                _widen(seen, reader.channels, maxima[name])
        for reader in pair.readers.values():
            weight = constant(graph, reader.weight).detach()
            if reader.weight in rows:
                axis, factors = rows[reader.weight]
                weight = weight / along(factors, axis, weight.ndim)
            own = weight.abs().transpose(0, reader.column_axis).flatten(1).amax(1)
            _widen(columns, reader.channels, own)
        factors = smoothing_factors(torch.where(pair.free, seen, 0.0), columns, alpha)
        rows[pair.weight] = (pair.channel_axis, factors)
        found.append(Smoothing(pair=pair, factors=factors))
    return tuple(reversed(found))


def _widen(largest: Tensor, channels: Tensor, values: Tensor) -> None:
    """Take maxima in; several may be of one channel."""
    largest.scatter_reduce_(0, channels, values.float(), "amax")


def smoothing_factors(activation_max: Tensor, weight_max: Tensor, alpha: float) -> Tensor:
    """Choose what each channel is divided by.

    Args:
        activation_max: (channels,), largest magnitude that calibration saw.
        weight_max: (channels,), largest magnitude in the columns that read it.
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


def fold(graph: GraphModule, smoothing: Smoothing) -> None:
    """Divide what is written and multiply what reads it."""
    pair = smoothing.pair
    divided = [(pair.weight, pair.channel_axis)]
    if pair.bias is not None:
        divided.append((pair.bias, 0))
    for name, axis in divided:
        tensor = constant(graph, name).detach()
        replace_constant(graph, name, tensor / along(smoothing.factors, axis, tensor.ndim))
    for reader in pair.readers.values():
        tensor = constant(graph, reader.weight)
        columns = smoothing.columns(reader)
        replace_constant(graph, reader.weight, smoothed(tensor, columns, reader.column_axis))


def smoothed(weight: Tensor, columns: Tensor | None, axis: int) -> Tensor:
    """Multiply the input channels of a weight, which it counts along one axis."""
    return weight if columns is None else weight.detach() * along(columns, axis, weight.ndim)
