"""A bias that is a sum of one value a grid row and one a grid column: found in a graph, computed.

SAM 3 computes either value by two linears with ReLU between them, from the distances of a cell to
two edges of a box. Their hidden values, 256 for each of 72 cells and each query, are 118 MB a layer
and axis with 16 phrases, written and read twice; the kernel here keeps them in registers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import GraphModule, Node

from samforge.core.triton_here import HAS_TRITON
from samforge.transform.lower.linear import TypedLinear
from samforge.transform.lower.relu import ReluLinear

SIDE = 8
"""Cells along a side of a tile: edges are padded to whole tiles."""
MOST_HEADS = 16
"""Columns of the smallest product on tensor cores."""
CELLS = 128
"""Cells of a program."""
HIDDEN = 64
"""Hidden values of a cell at a time."""


def padded(length: int) -> int:
    """A length in whole tiles."""
    return length + -length % SIDE


def edges_from_bias(down: Tensor, across: Tensor, plain: int, dtype: torch.dtype) -> Tensor:
    """Lay both parts of a bias side by side, as attention reads them.

    Args:
        down: (B, H, Q, height), a value for every grid row.
        across: (B, H, Q, width), a value for every grid column.
        plain: Queries without a bias in front of the others.
        dtype: Of the result: that of the query.

    Returns:
        (B, H, plain + Q, padded height + padded width), padded with zeros.
    """
    parts = [F.pad(part, (0, -part.shape[-1] % SIDE, plain, 0)) for part in (down, across)]
    return torch.cat(parts, dim=-1).to(dtype).contiguous()


def embed_edges_reference(  # noqa: PLR0913, PLR0917  # as the operator takes them
    rows: Tensor,
    columns: Tensor,
    down_first: Tensor,
    down_shift: Tensor,
    down_second: Tensor,
    down_bias: Tensor,
    across_first: Tensor,
    across_shift: Tensor,
    across_second: Tensor,
    across_bias: Tensor,
    plain: int,
) -> Tensor:
    """Compute both parts of a bias and lay them side by side.

    Args:
        rows: (B, Q, height, 2), float32: what the first linear reads for grid rows.
        columns: (B, Q, width, 2), float32, for grid columns.
        down_first: (N, 2), half, weight of the first linear for rows.
        down_shift: (N,), its bias.
        down_second: (H, N), half, weight of the second linear.
        down_bias: (H,), its bias.
        across_first: The same for columns.
        across_shift: The same for columns.
        across_second: The same for columns.
        across_bias: The same for columns.
        plain: Queries without a bias in front of the others.

    Returns:
        As :func:`edges_from_bias`, in half.
    """
    parts = []
    for cells, first, shift, second, bias in (
        (rows, down_first, down_shift, down_second, down_bias),
        (columns, across_first, across_shift, across_second, across_bias),
    ):
        hidden = F.relu(F.linear(cells.float(), first.float(), shift.float()))
        parts.append(F.linear(hidden.to(second.dtype), second, bias).permute(0, 3, 1, 2))
    return edges_from_bias(parts[0], parts[1], plain, down_second.dtype)


if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _embed_edges(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
        rows_ptr, columns_ptr, down_first_ptr, down_shift_ptr, down_second_ptr, down_bias_ptr,
        across_first_ptr, across_shift_ptr, across_second_ptr, across_bias_ptr, out_ptr,
        batch, queries, plain,
        height: tl.constexpr, width: tl.constexpr, hidden: tl.constexpr, heads: tl.constexpr,
        side: tl.constexpr, cells: tl.constexpr, block: tl.constexpr, padded_heads: tl.constexpr,
    ):  # fmt: skip
        high: tl.constexpr = (height + side - 1) // side * side
        wide: tl.constexpr = (width + side - 1) // side * side
        if tl.program_id(1) == 0:
            in_ptr, first_ptr, shift_ptr = rows_ptr, down_first_ptr, down_shift_ptr
            second_ptr, bias_ptr = down_second_ptr, down_bias_ptr
            length, stored, offset = height, high, 0
        else:
            in_ptr, first_ptr, shift_ptr = columns_ptr, across_first_ptr, across_shift_ptr
            second_ptr, bias_ptr = across_second_ptr, across_bias_ptr
            length, stored, offset = width, wide, high
        index = tl.program_id(0) * cells + tl.arange(0, cells)
        cell, row = index % stored, index // stored
        image, query = row // (plain + queries), row % (plain + queries)
        given = (image < batch) & (query >= plain) & (cell < length)
        in_at = in_ptr + ((image.to(tl.int64) * queries + query - plain) * length + cell) * 2
        low = tl.load(in_at, mask=given, other=0.0).to(tl.float32)
        far = tl.load(in_at + 1, mask=given, other=0.0).to(tl.float32)
        head = tl.arange(0, padded_heads)
        values = tl.zeros((cells, padded_heads), tl.float32)
        for start in range(0, hidden, block):
            unit = start + tl.arange(0, block)
            there = unit < hidden
            from_low = tl.load(first_ptr + unit * 2, mask=there, other=0.0).to(tl.float32)
            from_far = tl.load(first_ptr + unit * 2 + 1, mask=there, other=0.0).to(tl.float32)
            shift = tl.load(shift_ptr + unit, mask=there, other=0.0).to(tl.float32)
            inner = low[:, None] * from_low[None, :] + far[:, None] * from_far[None, :]
            inner = tl.maximum(inner + shift[None, :], 0.0).to(second_ptr.dtype.element_ty)
            second = tl.load(
                second_ptr + head[None, :] * hidden + unit[:, None],
                mask=there[:, None] & (head < heads)[None, :], other=0.0,
            )  # fmt: skip
            values = tl.dot(inner, second, values)
        bias = tl.load(bias_ptr + head, mask=head < heads, other=0.0).to(tl.float32)
        values = tl.where(given[:, None], values + bias[None, :], 0.0)
        line = (image.to(tl.int64) * heads)[:, None] + head[None, :]
        line = line * (plain + queries) + query[:, None]
        out_at = out_ptr + line * (high + wide) + (offset + cell)[:, None]
        mask = (image < batch)[:, None] & (head < heads)[None, :]
        tl.store(out_at, values.to(out_ptr.dtype.element_ty), mask=mask)

    @torch.library.triton_op("samforge::embed_edges", mutates_args={})
    def embed_edges(  # noqa: PLR0913, PLR0917
        rows: Tensor,
        columns: Tensor,
        down_first: Tensor,
        down_shift: Tensor,
        down_second: Tensor,
        down_bias: Tensor,
        across_first: Tensor,
        across_shift: Tensor,
        across_second: Tensor,
        across_bias: Tensor,
        plain: int,
    ) -> Tensor:
        """See :func:`embed_edges_reference`."""
        batch, queries, height, _ = rows.shape
        width = columns.shape[2]
        heads, hidden = down_second.shape
        high, wide = padded(height), padded(width)
        out = torch.empty(
            (batch, heads, plain + queries, high + wide),
            dtype=down_second.dtype,
            device=rows.device,
        )
        programs = triton.cdiv(batch * (plain + queries) * max(high, wide), CELLS)
        torch.library.wrap_triton(_embed_edges)[programs, 2](
            rows, columns, down_first, down_shift, down_second, down_bias,
            across_first, across_shift, across_second, across_bias, out,
            batch, queries, plain,
            height=height, width=width, hidden=hidden, heads=heads,
            side=SIDE, cells=CELLS, block=HIDDEN, padded_heads=MOST_HEADS, num_warps=4,
        )  # fmt: skip
        return out

    embed_edges.register_kernel("cpu")(embed_edges_reference)
else:
    embed_edges = embed_edges_reference


def grid_bias_from_mask(mask: Any) -> tuple[Node, Node, int] | None:
    """Read ``pad(flatten(down[..., None] + across[..., None, :]))`` off a graph.

    Args:
        mask: What is added to scores, (B, H, plain + Q, height * width).

    Returns:
        Nodes of ``down`` (B, H, Q, height) and ``across`` (B, H, Q, width), and the rows of zeros
        in front; None where the mask is anything else.
    """
    plain = 0
    if _name(mask) in ("pad", "constant_pad_nd"):
        widths, *others = mask.args[1:]
        if len(widths) < 4 or any(widths[:2]) or any(widths[3:]) or mask.kwargs:
            return None
        if any(other not in ("constant", 0.0, None) for other in others):
            return None
        plain, mask = int(widths[2]), mask.args[0]
    if _name(mask) not in ("flatten", "view", "reshape"):
        return None
    total = mask.args[0]
    if _name(total) != "add" or total.kwargs:
        return None
    shape, flat = _shape(total), _shape(mask)
    if len(shape) != 5 or len(flat) != 4 or str(shape[:3]) != str(flat[:3]):
        return None
    if not all(isinstance(size, int) for size in shape[3:]):
        return None
    parts: dict[int, Node] = {}
    for wide in total.args:
        if _name(wide) != "unsqueeze" or str(_shape(wide.args[0])[:3]) != str(shape[:3]):
            return None
        parts[wide.args[1] % 5] = wide.args[0]
    return (parts[4], parts[3], plain) if parts.keys() == {3, 4} else None


Embedding = tuple[ReluLinear, TypedLinear]


def embedding_before(part: Node, module: GraphModule) -> tuple[Embedding, Node] | None:
    """The two lowered linears, half and with ReLU between, that give a part of a bias.

    Args:
        part: (B, H, Q, cells).
        module: Owner of the linears.

    Returns:
        The linears and what they read, (B, Q, cells, 2); None where anything else is computed.
    """
    if _name(part) != "permute" or list(part.args[1]) != [0, 3, 1, 2]:  # type: ignore[arg-type]
        return None
    found: list[Any] = []
    node: Any = part
    for _ in range(2):
        node = node.args[0]
        if not (isinstance(node, Node) and node.op == "call_module" and len(node.users) == 1):
            return None
        found.insert(0, module.get_submodule(str(node.target)))
    first, second = found
    if not (isinstance(first, ReluLinear) and type(second) is TypedLinear):
        return None
    fits = first.weight.shape[1] == 2 and second.weight.shape[0] <= MOST_HEADS
    if not fits or second.bias is None or torch.float32 in (first.dtype, second.dtype):
        return None
    return (first, second), node.args[0]


def _name(node: Any) -> str:
    """Name of the operator that a node calls, without its overload."""
    if not isinstance(node, Node) or node.op != "call_function":
        return ""
    return str(getattr(node.target, "__name__", "")).split(".")[0]


def _shape(node: Node) -> tuple[Any, ...]:
    return tuple(node.meta["val"].shape)
