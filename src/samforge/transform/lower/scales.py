"""Ranges of what linears read, seen while an exported program runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Interpreter, Node

from samforge.core.session import PartSpec
from samforge.transform.lower.context import RuleContext
from samforge.transform.lower.e4m3 import E4M3_MAX
from samforge.transform.lower.program import drop_checks
from samforge.transform.lower.settings import Lowering


class _Watch(Interpreter):
    """Runs a graph and keeps the largest magnitude that each linear was fed."""

    def __init__(self, module: GraphModule, context: RuleContext) -> None:
        super().__init__(module)
        self.context = context
        self.largest: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n.op == "call_function" and str(n.target).startswith("aten.linear"):
            path = self.context.path(n)
            peak = cast(Tensor, self.env[cast(Node, n.args[0])]).detach().abs().amax().float()
            self.largest[path] = torch.maximum(self.largest.get(path, peak), peak)
        return result


def fp8_scales_from_samples(
    program: ExportedProgram,
    spec: PartSpec,
    samples: Iterable[Mapping[str, Tensor]],
    *,
    device: str = "cpu",
) -> dict[str, float]:
    """Choose static E4M3 scales by the largest value of each linear's input.

    E4M3 keeps its relative precision over 17 powers of two, so unlike int8 it loses little to a
    range that a single outlier sets; what saturates, on the other hand, is lost.

    Args:
        program: Exported and fused: paths are those that lowering will see.
        spec: Its interface.
        samples: Inputs by name.
        device: Where to run.

    Returns:
        Largest magnitude over 448, by module path of the linear.
    """
    module = program.module()
    drop_checks(module.graph)
    module.recompile()
    module.to(device)
    watch = _Watch(module, RuleContext(module=module, settings=Lowering(), device=device))
    with torch.inference_mode():
        for sample in samples:
            watch.run(*(sample[tensor.name].to(device) for tensor in spec.inputs))
    tiny = torch.finfo(torch.float32).tiny
    return {path: max(float(peak) / E4M3_MAX, tiny) for path, peak in watch.largest.items()}
