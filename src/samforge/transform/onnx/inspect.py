"""What an ``.onnx`` file holds, read without running it and without loading its weights."""

from __future__ import annotations

from pathlib import Path

from samforge.core.errors import DamagedBundle, MissingExtra
from samforge.core.session import TensorSpec
from samforge.transform.summary import ExternalFile, GraphSummary, weights_by_type

try:
    import onnx_ir as ir

    from samforge.transform.onnx.hazards import lint
    from samforge.transform.onnx.operators import FORBIDDEN, operator_counts
except ModuleNotFoundError as error:
    raise MissingExtra("onnx-ir", "build") from error


def summary_from_onnx(path: Path) -> GraphSummary:
    """Read the graph of an ``.onnx`` file.

    Raises:
        DamagedBundle: It is no ONNX file, or a damaged one.
    """
    model = _loaded(path)
    weights = [
        (_type_name(value), value.const_value)
        for value in model.graph.initializers.values()
        if value.const_value is not None
    ]
    counts = operator_counts(model)
    return GraphSummary(
        kind="ONNX",
        versions={
            **{f"opset {domain or 'ai.onnx'}": str(n) for domain, n in model.opset_imports.items()},
            "IR": str(model.ir_version),
            "producer": f"{model.producer_name or '?'} {model.producer_version or ''}".strip(),
        },
        inputs=tuple(_tensor(value) for value in model.graph.inputs),
        outputs=tuple(_tensor(value) for value in model.graph.outputs),
        operators=dict(counts.most_common()),
        weights=weights_by_type((name, tensor.nbytes) for name, tensor in weights),
        external=_external(path, [tensor for _, tensor in weights]),
        hazards=tuple(
            f"{counts[operator]} x {operator}: {reason}"
            for operator, reason in FORBIDDEN.items()
            if operator in counts
        ),
        findings=lint(model),
    )


def _loaded(path: Path) -> ir.Model:
    try:
        model = ir.load(path)
    except Exception as error:  # protobuf's and onnx_ir's exceptions have no common base
        raise _unreadable(path, str(error)) from error
    if not model.ir_version or not model.graph.outputs:  # an empty file is a valid empty message
        raise _unreadable(path, "it has no outputs")
    return model


def _unreadable(path: Path, why: str) -> DamagedBundle:
    return DamagedBundle(f"{path} cannot be read as ONNX: {why}. Copy it again from where it came.")


def _tensor(value: ir.Value) -> TensorSpec:
    axes = value.shape or ()
    return TensorSpec(
        name=value.name or "?",
        dtype=_type_name(value),
        shape=tuple(axis if isinstance(axis, int) else str(axis) for axis in axes),
    )


def _type_name(value: ir.Value) -> str:
    return "?" if value.dtype is None else value.dtype.numpy().name


def _external(path: Path, tensors: list[ir.TensorProtocol]) -> tuple[ExternalFile, ...]:
    """Files that the graph keeps weights in; looked at, never read."""
    places = {str(tensor.location) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}
    files = []
    for place in sorted(places):
        file = path.parent / place
        inside = file.resolve().is_relative_to(path.parent.resolve())
        size = file.stat().st_size if inside and file.is_file() else None
        files.append(ExternalFile(name=place, bytes=size, inside=inside))
    return tuple(files)
