"""fp32 embedding tables -> int8 rows that become float after they are looked up.

SAM 3's table of tokens is 202 MB in float32, a seventh of the text encoder, and a phrase reads 32
of its 49408 rows. The lookup comes first and the scaling after it, so no runtime has a reason to
turn the table back to float, neither when it folds constants nor in a call. No calibration is
needed. TensorRT is left alone: there an int8 constant may only feed a DequantizeLinear or a plugin,
so an engine with such a lookup is refused (TensorRT for RTX 1.7).
"""

from __future__ import annotations

import onnx_ir as ir

from samforge.core.session import Array
from samforge.transform.onnx.graph import array_of, constant, consumers, note, replace, tidy
from samforge.transform.onnx.weight_only import FEWEST, int8_and_scales

TABLES_NOTE = "samforge.int8_tables"
"""Key in the file's notes: embedding tables that are stored as int8."""


def embeddings_to_int8(model: ir.Model) -> ir.Model:
    """Store embedding tables as symmetric int8 with one scale for each row, in place.

    A table is a constant (rows, channels) that only lookups along its first axis read. A value
    moves by half a step of its row at most: by a 254th of the row's largest magnitude.

    Args:
        model: With float32 tables, and with Q/DQ or without.

    Returns:
        The same model. Its notes name the tables (``TABLES_NOTE``).
    """
    stored = []
    for value in list(model.graph.initializers.values()):
        table = array_of(value)
        if table is None or table.size < FEWEST or not _is_embedding(value):
            continue
        stored.append(value.name or "?")
        _store(model, value, table)
    tidy(model)
    if stored:
        note(model, [(TABLES_NOTE, ", ".join(stored))])
    return model


def _is_embedding(value: ir.Value) -> bool:
    """Whether rows of this float32 matrix are looked up, and nothing else is done with it."""
    if value.dtype != ir.DataType.FLOAT or value.shape is None or len(value.shape) != 2:
        return False
    if value.is_graph_output() or not value.uses():
        return False
    return all(
        node.op_type == "Gather"
        and not node.domain
        and index == 0
        and node.attributes.get_int("axis", 0) in {0, -2}
        for node, index in value.uses()
    )


def _store(model: ir.Model, value: ir.Value, table: Array) -> None:
    integers, scales = int8_and_scales(table, 0)
    rows = constant(model, f"{value.name}_int8", integers)
    steps = constant(model, f"{value.name}_scales", scales.reshape(-1, 1))
    for gather in consumers(value):
        indices = gather.inputs[1]
        picked = ir.node("Gather", [rows, indices], {"axis": 0})  # [*indices, channels]
        scale = ir.node("Gather", [steps, indices], {"axis": 0})  # [*indices, 1]
        cast = ir.node("Cast", [picked.outputs[0]], {"to": int(ir.DataType.FLOAT)})
        scaled = ir.node("Mul", [cast.outputs[0], scale.outputs[0]])
        picked.outputs[0].dtype = ir.DataType.INT8
        for node in (cast, scale, scaled):
            node.outputs[0].dtype = ir.DataType.FLOAT
        picked.outputs[0].shape = cast.outputs[0].shape = gather.outputs[0].shape
        replace([gather], [picked, scale, cast, scaled], scaled.outputs[0])
