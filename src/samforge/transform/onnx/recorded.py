"""What a graph quantizes, beside what the quantizer wrote down.

A graph that was swapped for its float form multiplies no integers and misses none: its own notes
cannot tell. So the layers and the range of each are compared with the quantizer's record.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir

from samforge.core.errors import BuildError
from samforge.transform.onnx.e4m3 import ACTIVATION_STEPS, LARGEST
from samforge.transform.onnx.graph import array_of, layer_path
from samforge.transform.onnx.integer_kernels import INTEGER_OPERATORS
from samforge.transform.onnx.qdq import quantized_layers

SCALE_INPUT = {"QLinearConv": 1, "QLinearMatMul": 1, "QGemm": 1}
"""Which input is the scale of the activations, where it is not the third."""
TOLERANCE = 0.01
"""Relative: scales are rounded to half where a target keeps them so."""
SHOWN = 6
"""Layers that an error names."""


def ranges_of(model: ir.Model) -> dict[str, list[float]]:
    """Largest input that each quantized layer represents, by module path: one for each use."""
    found: dict[str, list[float]] = defaultdict(list)
    for layer in quantized_layers(model):
        scale, kind = array_of(layer.activation.inputs[1]), layer.activation.inputs[0]
        steps = ACTIVATION_STEPS
        if kind is not None and kind.dtype == ir.DataType.FLOAT8E4M3FN:
            steps = LARGEST
        if scale is not None:
            found[layer.path].append(float(scale) * steps)
    for node in model.graph:
        if node.op_type in INTEGER_OPERATORS:
            scale = array_of(node.inputs[SCALE_INPUT.get(node.op_type, 2)])
            if scale is not None:
                found[layer_path(node)].append(float(scale) * ACTIVATION_STEPS)
    return {path: sorted(ranges) for path, ranges in found.items()}


def recorded_share(recorded: Iterable[Mapping[str, object]], model: ir.Model) -> float:
    """Share of a part's multiplications that a graph does in 8 bits, 0 to 1.

    Args:
        recorded: Rows of the quantizer's report: ``path`` and ``share``.
        model: As it was saved; a target's form takes some layers back to float.
    """
    found = ranges_of(model)
    return sum(
        float(str(row["share"]))
        for row in recorded
        if {str(row["path"]), str(row["path"]).rpartition(".")[0]} & found.keys()
    )


def check_recorded(
    part: str,
    recorded: Iterable[Mapping[str, object]],
    model: ir.Model,
    *,
    left: Sequence[str] = (),
) -> int:
    """Make sure that a graph quantizes what was decided, with the ranges that were measured.

    Args:
        part: Name of the part, for messages.
        recorded: Rows of the quantizer's report: ``path`` and ``activation_range``.
        model: As it was saved.
        left: Layers that the target's form of the graph took back to float, and said so.

    Returns:
        Number of layers compared.

    Raises:
        BuildError: A layer is not quantized, or has another range: named.
    """
    found = ranges_of(model)
    wanted: dict[str, list[float]] = defaultdict(list)
    for row in recorded:
        path = str(row["path"])
        # A weight without a module of its own is named after itself there, in a graph after the
        # module that reads it: masks.upsampling_0 and masks.
        owner = path.rpartition(".")[0]
        if path not in left and (path in found or owner not in left):
            place = path if path in found or owner not in found else owner
            wanted[place].append(float(str(row["activation_range"])))
    lost = [path for path in wanted if path not in found]
    if lost:
        raise BuildError(
            f"{len(lost)} of {len(wanted)} layers of {part} that the quantizer put into 8 bits are "
            f"in float in the graph: {_named(lost)}. Nothing was published."
        )
    strange = [
        f"{path} ({found[path][0]:.4g}, calibrated to {ranges[0]:.4g})"
        for path, ranges in wanted.items()
        if not _alike(ranges, found[path])
    ]
    if strange:
        raise BuildError(
            f"{len(strange)} of {len(wanted)} quantized layers of {part} represent another range "
            f"in the graph than calibration measured: {_named(strange)}. Nothing was published."
        )
    return len(wanted)


def _alike(wanted: Sequence[float], found: Sequence[float]) -> bool:
    """Whether each range that is found is one of the wanted, and the other way round."""

    def near(one: float, others: Sequence[float]) -> bool:
        return any(abs(one - other) <= TOLERANCE * abs(other) for other in others)

    return all(near(one, found) for one in wanted) and all(near(one, wanted) for one in found)


def _named(rows: Sequence[str]) -> str:
    more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    return ", ".join(rows[:SHOWN]) + more
