"""What a graph file holds: ``.onnx`` or ``.pt2``, read without running it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samforge.core.errors import DamagedBundle, ExportError, MissingExtra, SettingError
from samforge.core.session import TensorSpec
from samforge.transform.summary import GraphSummary, weights_by_type

if TYPE_CHECKING:
    from torch.export import ExportedProgram

SUFFIXES = (".onnx", ".pt2")
"""Files that can be read."""


def summary_from_file(path: Path) -> GraphSummary:
    """Read the graph in a file.

    Raises:
        SettingError: There is no such file, or it is of another kind.
        DamagedBundle: It is damaged.
        MissingExtra: The package that reads it is not installed.
    """
    if not path.is_file():
        raise SettingError(f"{path} is no file. Give a bundle's folder, or an .onnx or .pt2 file.")
    if path.suffix == ".onnx":
        from samforge.transform.onnx.inspect import summary_from_onnx

        return summary_from_onnx(path)
    if path.suffix == ".pt2":
        return summary_from_exported(path)
    raise SettingError(
        f"{path} ends in '{path.suffix}'. What can be read: a bundle's folder, or a file that ends "
        f"in {' or '.join(SUFFIXES)}."
    )


def fusions_from_exported(path: Path, target: str) -> list[dict[str, Any]]:
    """Try a target's fusions on an exported program; the file stays as it is.

    Args:
        path: A ``.pt2`` file of torch.export.
        target: One of ``samforge.core.recipe.TARGETS``.

    Returns:
        One row a fusion: its ``name``, how often it ``fired``, whether it is ``exact``, and what
        was ``left`` with the reason.

    Raises:
        SettingError: The target is unknown.
        DamagedBundle: It is no such file, a damaged one, or one of another torch.
        MissingExtra: torch is not installed.
    """
    exported = _exported(path)
    from samforge.transform.fuse import fuse

    return [asdict(result) for result in fuse(exported, target=target, consume=True).results]


def summary_from_exported(path: Path) -> GraphSummary:
    """Read the graph of a ``.pt2`` file of torch.export.

    Raises:
        DamagedBundle: It is no such file, a damaged one, or one of another torch.
        MissingExtra: torch is not installed.
    """
    exported = _exported(path)
    import torch

    nodes = {node.name: node for node in exported.graph.nodes}
    counts = Counter(
        str(node.target) for node in exported.graph.nodes if node.op == "call_function"
    )
    signature = exported.graph_signature
    stored = [
        tensor
        for tensor in (*exported.state_dict.values(), *exported.constants.values())
        if isinstance(tensor, torch.Tensor)
    ]
    return GraphSummary(
        kind="exported program",
        versions={"read by torch": torch.__version__, "dialect": exported.dialect},
        inputs=tuple(_tensor(name, nodes) for name in signature.user_inputs),
        outputs=tuple(_tensor(name, nodes) for name in signature.user_outputs),
        operators=dict(counts.most_common()),
        weights=weights_by_type((str(t.dtype).removeprefix("torch."), t.nbytes) for t in stored),
        external=(),
        hazards=(),
    )


def _tensor(name: object, nodes: dict[str, object]) -> TensorSpec:
    value = getattr(nodes.get(str(name)), "meta", {}).get("val")
    dtype = str(getattr(value, "dtype", "?")).removeprefix("torch.")
    axes = getattr(value, "shape", ())
    return TensorSpec(
        name=str(name),
        dtype=dtype,
        shape=tuple(axis if isinstance(axis, int) else str(axis) for axis in axes),
    )


def _exported(path: Path) -> ExportedProgram:
    try:
        from samforge.transform.export import exported_from_file
    except ModuleNotFoundError as error:
        raise MissingExtra("PyTorch", "build") from error
    try:
        return exported_from_file(path)
    except ExportError as error:
        raise DamagedBundle(
            f"{error}. Copy it again from where it came, or build it with this torch."
        ) from error
