"""What takes the place of the exporter's own translations, or is missing there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset20 as op

from samforge.core.errors import ExportError
from samforge.transform.onnx.attention import explicit_attention

aten = torch.ops.aten


def subtracted_from(values: Any, other: float, alpha: float = 1) -> Any:
    """Translate ``aten.rsub.Scalar``: ``other - values``."""
    if alpha != 1:
        raise ExportError(f"rsub with alpha {alpha} has no translation here.")
    constant: Any = op.Constant(value_float=float(other))
    return op.Sub(op.CastLike(constant, values), values)


def both(first: Any, second: Any) -> Any:
    """Translate ``aten.__and__.Tensor`` of two conditions.

    Raises:
        ExportError: They are numbers, whose bits it would join.
    """
    if first.dtype != ir.DataType.BOOL:
        raise ExportError(f"& of {first.dtype} has no translation here, only that of conditions.")
    return op.And(first, second)


def cast(  # the signature of the aten operator
    values: Any,
    dtype: int,
    non_blocking: bool = False,
    copy: bool = False,
    memory_format: Any = None,
) -> Any:
    """Translate ``aten.to.dtype``."""
    del non_blocking, copy, memory_format  # of memory, not of values
    return op.Cast(values, to=dtype)


def flattened(values: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
    """Translate ``aten.flatten.using_ints`` where more than one size is dynamic.

    Axes before those that are merged stay, which ONNX writes as 0.
    """
    shape = list(values.shape)
    start, end = start_dim % len(shape), end_dim % len(shape)
    behind = shape[end + 1 :]
    if all(isinstance(size, int) for size in behind):
        sizes: Any = op.Constant(value_ints=[0] * start + [-1] + behind)
    else:
        known: Any = op.Constant(value_ints=[0] * start + [-1])
        sizes = op.Concat(known, op.Shape(values, start=end + 1), axis=0)
    return op.Reshape(values, sizes)


def transposed_convolution(  # noqa: PLR0913, PLR0917  # the signature of the aten operator
    values: Any,
    weight: Any,
    bias: Any = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    output_padding: Sequence[int] = (0, 0),
    groups: int = 1,
    dilation: Sequence[int] = (1, 1),
) -> Any:
    """Translate ``aten.conv_transpose2d``."""
    return op.ConvTranspose(
        values,
        weight,
        bias,
        strides=list(stride),
        pads=[*padding, *padding],
        output_padding=list(output_padding),
        group=groups,
        dilations=list(dilation),
    )


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    aten.scaled_dot_product_attention.default: explicit_attention,
    aten.rsub.Scalar: subtracted_from,
    aten.__and__.Tensor: both,
    aten.to.dtype: cast,
    aten.flatten.using_ints: flattened,
    aten.conv_transpose2d.input: transposed_convolution,
}
"""By the operator of torch."""
