"""The torchao quantizer: puts given observers in front of the chosen operators."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.observer import ObserverBase, PlaceholderObserver
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
)

from samforge.transform.quantize.observers import QMAX, QMIN
from samforge.transform.quantize.sites import Site, constant

ANNOTATION = "quantization_annotation"
"""Where torchao looks for it in a node's meta."""
WEIGHT_QMIN = -127
"""Weights leave -128 out: their negatives must exist too."""
SMALLEST_SCALE = 2.0**-24
"""The smallest positive number of half precision, so that no scale becomes 0 there."""

_SPEC = QuantizationSpec(dtype=torch.int8, observer_or_fake_quant_ctr=PlaceholderObserver)


class SiteQuantizer(Quantizer):  # type: ignore[misc]  # torchao has no types
    """Annotates inputs, and weights where an observer is given for them.

    One observer stands behind one tensor, however many operators read it: what q, k and v share is
    quantized once.
    """

    def __init__(
        self,
        sites: Iterable[Site],
        inputs: Mapping[str, ObserverBase],
        weights: Mapping[str, ObserverBase] | None = None,
    ) -> None:
        """Take the observers by input node, and by site for weights."""
        super().__init__()
        self._sites = {site.node: site for site in sites}
        self._inputs = inputs
        self._weights = weights or {}

    def annotate(self, model: GraphModule) -> GraphModule:
        """Mark the edges to observe."""
        for node in model.graph.nodes:
            if node.name not in self._sites:
                continue
            edges: dict[Node, Any] = {node.args[0]: _SPEC}
            if self._weights:
                edges[node.args[1]] = _SPEC
            node.meta[ANNOTATION] = QuantizationAnnotation(input_qspec_map=edges, _annotated=True)
        return model

    def validate(self, model: GraphModule) -> None:
        """Nothing to refuse: the sites come from this graph."""

    def prepare_obs_or_fq_callback(self, model: GraphModule, edges: dict[Any, Any]) -> None:  # noqa: ARG002
        """Put our own observers in: torchao would make copies from a constructor."""
        for edge in edges:
            source, user = edge
            site = self._sites[user.name]
            weight = source.name != site.input
            edges[edge] = self._weights[site.node] if weight else self._inputs[site.input]


class FixedScale(ObserverBase):  # type: ignore[misc]
    """Stands for an activation whose range is known."""

    qscheme = torch.per_tensor_symmetric
    quant_min, quant_max = QMIN, QMAX

    def __init__(self, scale: float) -> None:
        super().__init__(dtype=torch.int8)
        self._scale = scale

    def forward(self, values: Tensor) -> Tensor:
        """Observe nothing."""
        return values

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """The scale and zero."""
        return torch.tensor([self._scale]), torch.zeros(1, dtype=torch.int64)


class FrozenWeight(ObserverBase):  # type: ignore[misc]
    """Stands for a weight that is stored as int8.

    torchao's own folding leaves the float weight in the module (its attribute has a dotted name),
    and every int8 one is called ``_frozen_param``. Here the node becomes a DequantizeLinear over a
    buffer beside the module's other tensors.
    """

    def __init__(self, site: Site, scale: Tensor) -> None:
        super().__init__(dtype=torch.int8)
        self._site = site
        self._scale = scale

    def forward(self, values: Tensor) -> Tensor:
        """Observe nothing."""
        return values

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """The scales and zeros."""
        return self._scale, torch.zeros_like(self._scale, dtype=torch.int64)

    def convert(self, model: GraphModule, node: Node) -> None:
        """Replace the observer's node; torchao calls this in place of its own conversion."""
        name = self._site.weight
        assert name is not None  # noqa: S101  # sites without a weight are not quantized
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        weight = int8_from_weight(constant(model, name), self._scale, self._site.channel_axis)
        scale, zero = self.calculate_qparams()
        prefix = f"{owner}." if owner else ""
        graph = model.graph
        with graph.inserting_before(node):
            tensors = []
            for suffix, tensor in (("int8", weight), ("scale", scale), ("zero_point", zero)):
                module.register_buffer(f"{leaf}_{suffix}", tensor)
                tensors.append(graph.get_attr(f"{prefix}{leaf}_{suffix}"))
            float_weight = graph.call_function(
                torch.ops.quantized_decomposed.dequantize_per_channel.default,
                (*tensors, self._site.channel_axis, WEIGHT_QMIN, QMAX, torch.int8),
            )
        float_weight.meta = dict(next(iter(node.users)).meta)
        node.replace_all_uses_with(float_weight)
        graph.erase_node(node)


def weight_scale(weight: Tensor, axis: int) -> Tensor:
    """Scale of each output channel, (channels,): its largest magnitude becomes 127."""
    magnitude = weight.detach().abs().transpose(0, axis).flatten(1).amax(1)
    return (magnitude / QMAX).clamp(min=SMALLEST_SCALE)


def int8_from_weight(weight: Tensor, scale: Tensor, axis: int) -> Tensor:
    """Round a weight to int8 with one scale for each output channel."""
    steps = weight.detach() / along(scale, axis, weight.ndim)
    return steps.round_().clamp_(WEIGHT_QMIN, QMAX).to(torch.int8)


def along(values: Tensor, axis: int, rank: int) -> Tensor:
    """Reshape (n,) so that it broadcasts along one axis of a tensor of that rank."""
    shape = [1] * rank
    shape[axis] = -1
    return values.view(shape)
