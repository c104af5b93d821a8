"""Finds rotary position encoding over pairs of channels in an ONNX graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from samforge.core.session import Array
from samforge.transform.onnx.graph import array_of, producer


@dataclass(frozen=True, kw_only=True, slots=True)
class Rotary:
    """``x * cos + rotated(x) * sin`` where a rotation makes (-x1, x0) of every pair (x0, x1)."""

    value: ir.Value
    """The x, (B, heads, S, D)."""
    cos: Array
    """(S, D / 2): one number a pair."""
    sin: Array
    """(S, D / 2)."""


def rotary_from_add(add: ir.Node) -> Rotary | None:
    """Read the sum that a rotary encoding ends in; None for any other sum."""
    products = [producer(value, "Mul") for value in add.inputs]
    for straight, turned in (products, reversed(products)):
        if straight is None or turned is None:
            continue
        cos, value = _table_and_other(straight)
        sin, rotated = _table_and_other(turned)
        if cos is None or sin is None or value is None or _pairs_source(rotated) is not value:
            continue
        tables = _by_pair(cos), _by_pair(sin)
        if tables[0] is not None and tables[1] is not None:
            return Rotary(value=value, cos=tables[0], sin=tables[1])
    return None


def _by_pair(table: Array) -> Array | None:
    """(1, S, D) with equal neighbours -> (S, D / 2)."""
    if table.size != table.shape[-2] * table.shape[-1]:
        return None
    flat = table.reshape(table.shape[-2:])
    if not np.array_equal(flat[:, 0::2], flat[:, 1::2]):
        return None
    return np.ascontiguousarray(flat[:, 0::2])


def _table_and_other(mul: ir.Node) -> tuple[Array | None, ir.Value | None]:
    for table, other in (mul.inputs, reversed(mul.inputs)):
        array = array_of(table)
        if array is not None and array.ndim >= 2:
            return array, other
    return None, None


def _pairs_source(value: ir.Value | None) -> ir.Value | None:
    """``(x0, x1) -> (-x1, x0)`` for every pair of channels: the x, or None for anything else."""
    flat = producer(value, "Reshape")
    joined = producer(flat.inputs[0], "Concat") if flat is not None else None
    if joined is None or len(joined.inputs) != 2:
        return None
    negated, kept = (producer(part, "Unsqueeze") for part in joined.inputs)
    negative = producer(negated.inputs[0], "Neg") if negated is not None else None
    if kept is None or negative is None:
        return None
    odd, even = _half(negative.inputs[0]), _half(kept.inputs[0])
    if odd is None or even is None or odd[0] is not even[0] or (even[1], odd[1]) != (0, 1):
        return None
    pairs = producer(odd[0], "Reshape")
    return pairs.inputs[0] if pairs is not None else None


def _half(value: ir.Value | None) -> tuple[ir.Value, int] | None:
    """Which of the two numbers of each pair a value is."""
    squeezed = producer(value, "Squeeze")
    if squeezed is None:
        return None
    part = producer(squeezed.inputs[0], "Slice", "Split")
    if part is None or part.inputs[0] is None:
        return None
    axes = list(part.inputs[0].shape or ())
    if not axes or axes[-1] != 2:
        return None
    if part.op_type == "Split":
        return part.inputs[0], int(part.outputs[0] is not squeezed.inputs[0])
    start = array_of(part.inputs[1])
    return None if start is None else (part.inputs[0], int(start.reshape(-1)[0]))
