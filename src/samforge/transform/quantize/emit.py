"""Calibrated -> ExportedProgram with Q/DQ pairs and int8 weights."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from samforge.transform.quantize.calibration import Calibrated
from samforge.transform.quantize.quantizer import FixedScale, FrozenWeight, SiteQuantizer
from samforge.transform.quantize.reexport import exported_again
from samforge.transform.quantize.smooth import fold


def program_from_calibrated(calibrated: Calibrated, *, kept: Iterable[str] = ()) -> ExportedProgram:
    """Quantize all sites but those of some groups.

    Args:
        calibrated: Ranges of every site.
        kept: Groups that stay float.

    Returns:
        A program with the float one's inputs, outputs and dynamic axes: per-tensor int8 Q/DQ in
        front of each operator (zero point 0), weights as int8 with one scale an output channel.

    Raises:
        ExportError: The changed graph cannot be exported again.
    """
    left = set(kept)
    sites = tuple(site for site in calibrated.sites if site.group not in left)
    graph = calibrated.program.module()
    folded = calibrated.folded({site.node for site in sites})
    for smoothing in folded:
        fold(graph, smoothing)
    prepared = prepare_pt2e(
        graph,
        SiteQuantizer(
            sites,
            {site.input: FixedScale(calibrated.input_scale[site.input]) for site in sites},
            {
                site.node: FrozenWeight(site, calibrated.folded_scale(site, folded))
                for site in sites
            },
        ),
    )
    quantized = convert_pt2e(prepared, fold_quantize=False)
    drop_unused(quantized)
    return exported_again(quantized, calibrated.program, calibrated.part)


class Programs:
    """Quantized programs of one calibrated part.

    The last one is remembered: what a gate accepts is what is asked for next, and making it traces
    the whole part again.
    """

    def __init__(self, calibrated: Calibrated) -> None:
        self.calibrated = calibrated
        """Ranges of every site."""
        self._kept: frozenset[str] | None = None
        self._program: ExportedProgram | None = None

    def with_kept(self, kept: Iterable[str] = ()) -> ExportedProgram:
        """The program with some groups float, as :func:`program_from_calibrated` makes it."""
        wanted = frozenset(kept)
        if self._program is None or wanted != self._kept:
            self._program = None  # at full size there is no room for two
            self._program = program_from_calibrated(self.calibrated, kept=wanted)
            self._kept = wanted
        return self._program


def smoothed_program(calibrated: Calibrated) -> ExportedProgram:
    """The float program with its channels evened out: the same function, to the last bit.

    For backends that quantize by themselves and take only the scales.

    Raises:
        ExportError: The changed graph cannot be exported again.
    """
    graph = calibrated.program.module()
    for smoothing in calibrated.smoothings:
        fold(graph, smoothing)
    return exported_again(graph, calibrated.program, calibrated.part)


def evened_weights(calibrated: Calibrated, *, kept: Iterable[str] = ()) -> dict[str, Tensor]:
    """Every tensor of the float program, evened out as in :func:`program_from_calibrated`."""
    left = set(kept)
    graph = calibrated.program.module()
    for smoothing in calibrated.folded({s.node for s in calibrated.sites if s.group not in left}):
        fold(graph, smoothing)
    return {**dict(graph.named_parameters()), **dict(graph.named_buffers())}


def drop_unused(graph: GraphModule) -> None:
    """Remove constants that no operator reads: float weights whose int8 form is in the graph."""
    for node in list(graph.graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.graph.erase_node(node)
    used = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    for name, _ in [*graph.named_parameters(), *graph.named_buffers()]:
        if name not in used:
            owner, _, leaf = name.rpartition(".")
            delattr(graph.get_submodule(owner), leaf)
    graph.recompile()
