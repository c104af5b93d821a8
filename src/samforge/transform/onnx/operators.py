"""Operators that must not reach a runtime, and why."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from samforge.core.errors import ExportError

FORBIDDEN = {
    "CumSum": "TensorRT takes several of them for one axis (NVIDIA/TensorRT#4551)",
    "If": "TensorRT builds both branches, and a branch on shapes is a tracing accident",
    "Loop": "TensorRT runs it step by step",
    "Scan": "TensorRT runs it step by step",
    "GridSample": "slow or wrong in DETR-like graphs on several runtimes",
    "NonZero": "its output shape depends on data",
    "RoiAlign": "its adaptive grid is not supported by every target",
}
"""Operator and reason. Our parts avoid them by construction; this makes sure."""
COMPLEX = {ir.DataType.COMPLEX64, ir.DataType.COMPLEX128}


def operator_counts(model: ir.Model) -> Counter[str]:
    """How often each operator stands in the graph, most frequent first."""
    return Counter(node.op_type for node in model.graph.all_nodes())


def check_operators(model: ir.Model, name: str) -> None:
    """Refuse graphs with forbidden operators, functions of the exporter, or complex tensors.

    Raises:
        ExportError: Names the operators and the reasons.
    """
    counts = operator_counts(model)
    problems = [
        f"{counts[operator]} x {operator} ({reason})"
        for operator, reason in FORBIDDEN.items()
        if operator in counts
    ]
    foreign = sorted({node.domain for node in model.graph.all_nodes()} - {"", "ai.onnx"})
    if foreign:
        problems.append(f"operators of the domains {', '.join(foreign)} (no runtime has them)")
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    values += [value for node in model.graph.all_nodes() for value in node.outputs]
    if any(value.dtype in COMPLEX for value in values):
        problems.append("complex tensors (no runtime has them)")
    if problems:
        raise ExportError(f"The ONNX graph of {name} holds {'; '.join(problems)}.")
