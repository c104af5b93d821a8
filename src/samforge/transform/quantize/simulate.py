"""Run a float program with any choice of its operators quantized, without building a graph.

Sensitivity needs hundreds of choices. Each is one run of the float graph in which the chosen
operators get a rounded input and a rounded weight, from ranges that calibration found once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter, Node
from torch.utils._pytree import tree_leaves, tree_map

from samforge.transform.quantize.calibration import Calibrated
from samforge.transform.quantize.observers import HALF_STEPS, QMAX, QMIN
from samforge.transform.quantize.quantizer import along, int8_from_weight
from samforge.transform.quantize.sites import Site
from samforge.transform.quantize.smooth import smoothed

E4M3_MAX = 448.0
"""Largest number of float8_e4m3fn."""
ACTIVATION_TO_E4M3 = HALF_STEPS / E4M3_MAX
"""From an activation's int8 scale to its E4M3 scale: the same range, other steps."""
WEIGHT_TO_E4M3 = QMAX / E4M3_MAX
"""The same for a weight, whose int8 range ends at 127."""


def round_int8(values: Tensor, scale: float) -> Tensor:
    """What an activation becomes between Q and DQ."""
    return torch.fake_quantize_per_tensor_affine(values, scale, 0, QMIN, QMAX)


def round_e4m3(values: Tensor, scale: Tensor | float) -> Tensor:
    """Round to float8_e4m3fn and back; what is beyond its range ends at the largest number."""
    small = (values / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    return small.to(values.dtype) * scale


@dataclass(frozen=True, slots=True)
class Pair:
    """A tensor of the float run and the same of the quantized run."""

    exact: Any
    """Float."""
    rounded: Any
    """With quantized operators before it; the same object where there were none."""


class Simulation(Interpreter):
    """Runs a calibrated program twice at once: as it is, and with some operators quantized."""

    def __init__(self, calibrated: Calibrated, *, precision: str) -> None:
        super().__init__(calibrated.program.module())
        self._calibrated = calibrated
        self._sites = {site.node: site for site in calibrated.sites}
        self._columns = calibrated.columns()
        self._names = [str(name) for name in calibrated.program.graph_signature.user_inputs]
        self._e4m3 = precision == "fp8"
        self._quantized: Collection[str] = ()
        self._noise: dict[str, tuple[float, float]] | None = None

    def outputs(
        self, sample: Mapping[str, Tensor], quantized: Collection[str]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Run one sample.

        Args:
            sample: Inputs by name.
            quantized: Nodes of the sites to quantize.

        Returns:
            The outputs in float, and with those sites quantized.
        """
        self._quantized = quantized
        with torch.no_grad():
            results = self.run(*(sample[name] for name in self._names))
        results = (results,) if isinstance(results, (Tensor, Pair)) else results
        return tuple(map(_exact, results)), tuple(map(_rounded, results))

    def layer_noise(
        self, sample: Mapping[str, Tensor], quantized: Collection[str]
    ) -> dict[str, tuple[float, float]]:
        """Energy of signal and noise behind every site, by node."""
        self._noise = {}
        self.outputs(sample, quantized)
        noise, self._noise = self._noise, None
        return noise

    def run_node(self, n: Node) -> Any:
        """Run a node for both; once where nothing before it was quantized."""
        if n.op != "call_function":
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        is_leaf = {"is_leaf": lambda value: isinstance(value, Pair)}
        call: Any = n.target
        exact = call(*tree_map(_exact, args, **is_leaf), **tree_map(_exact, kwargs, **is_leaf))
        changed = any(isinstance(a, Pair) for a in tree_leaves((args, kwargs), **is_leaf))
        chosen = n.name in self._quantized
        result = exact
        if changed or chosen:
            own = tree_map(_rounded, args, **is_leaf)
            if chosen:
                own = self._rounded_arguments(self._sites[n.name], own)
            rounded = call(*own, **tree_map(_rounded, kwargs, **is_leaf))
            result = _paired(exact, rounded)
        if self._noise is not None and n.name in self._sites:
            error = _rounded(result) - exact
            self._noise[n.name] = (float(exact.square().sum()), float(error.square().sum()))
        return result

    def _rounded_arguments(self, site: Site, args: tuple[Any, ...]) -> tuple[Any, ...]:
        values, weight, *rest = args
        columns = self._columns.get(site.node)
        scale = self._calibrated.input_scale[site.input]
        weight_scale = self._calibrated.weight_scale[site.node]
        axis = site.channel_axis
        if columns is not None:
            # Powers of two: dividing here gives the bits that a folded writer gives. So does
            # leaving out what the rows of a weight are divided by: its scales are as well.
            values = values / along(columns, site.input_axis, values.ndim)
        weight = smoothed(weight, columns, site.column_axis)
        broadcast = along(weight_scale, axis, weight.ndim)
        if self._e4m3:
            values = round_e4m3(values, scale * ACTIVATION_TO_E4M3)
            weight = round_e4m3(weight, broadcast * WEIGHT_TO_E4M3)
        else:
            values = round_int8(values, scale)
            weight = int8_from_weight(weight, weight_scale, axis) * broadcast
        return (values, weight, *rest)


def _exact(value: Any) -> Any:
    return value.exact if isinstance(value, Pair) else value


def _rounded(value: Any) -> Any:
    return value.rounded if isinstance(value, Pair) else value


def _paired(exact: Any, rounded: Any) -> Any:
    """Pair tensors, also inside the lists that a split returns; sizes are the same in both."""
    if isinstance(exact, Tensor):
        return Pair(exact, rounded)
    if isinstance(exact, (list, tuple)):
        return type(exact)(_paired(a, b) for a, b in zip(exact, rounded, strict=True))
    return exact
