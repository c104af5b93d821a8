"""A residual sum and the LayerNorm that reads it as one kernel.

Inductor's kernel for them reads the vectors of the norm and of the branch's scales again for every
row: 20 us a half layer where the traffic needs 9 (H200, 5,184 rows of 1,024).
"""

from __future__ import annotations

import operator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from samforge.core.triton_here import HAS_TRITON
from samforge.transform.lower.e4m3 import E4M3
from samforge.transform.lower.linear import Fp8Linear, Fp8Mlp, TypedLinear, quantized
from samforge.transform.lower.normalization import TypedLayerNorm

SUM_ROWS = 2
"""Rows of a program: the vectors of a LayerNorm and of scales are read once for all of them."""


def sum_norm_reference(  # noqa: PLR0913, PLR0917  # as the operator takes them
    residual: Tensor,
    product: Tensor,
    weight: Tensor,
    shift: Tensor,
    epsilon: float,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    inverse: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Add a branch to a residual stream and normalize the sum, in one pass.

    Args:
        residual: (M, C).
        product: (M, C), half: the branch, before its scales and bias where these are given.
        weight: (C,), float32, of the LayerNorm.
        shift: (C,), float32, its bias.
        epsilon: Added to the variance.
        scale: (C,), float32, times which the branch is the product.
        bias: (C,), float32, of the branch.
        inverse: (1,), float32: one over the scale of a normalized result in E4M3.

    Returns:
        The sum (M, C) in the residual's type, and the normalized sum (M, C) in the product's type
        or in E4M3.
    """
    branch = product.float()
    if scale is not None and bias is not None:
        branch = branch * scale + bias
    total = residual.float() + branch
    normed = F.layer_norm(total, (total.shape[-1],), weight, shift, epsilon)
    normed = normed.to(product.dtype) if inverse is None else quantized(normed, inverse)
    return total.to(residual.dtype), normed


if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _sum_norm(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
        residual_ptr, product_ptr, weight_ptr, shift_ptr, scale_ptr, bias_ptr, inverse_ptr,
        total_ptr, normed_ptr, rows, columns,
        epsilon: tl.constexpr, scaled: tl.constexpr, quantize: tl.constexpr,
        block: tl.constexpr, each: tl.constexpr,
    ):  # fmt: skip
        column = tl.arange(0, block)
        inside = column < columns
        weight = tl.load(weight_ptr + column, mask=inside, other=0.0)
        shift = tl.load(shift_ptr + column, mask=inside, other=0.0)
        if scaled:
            scale = tl.load(scale_ptr + column, mask=inside, other=0.0)
            bias = tl.load(bias_ptr + column, mask=inside, other=0.0)
        if quantize:
            inverse = tl.load(inverse_ptr)
        for index in range(each):
            row = tl.program_id(0) * each + index
            place = row.to(tl.int64) * columns + column
            mask = inside & (row < rows)
            total = tl.load(residual_ptr + place, mask=mask, other=0.0).to(tl.float32)
            branch = tl.load(product_ptr + place, mask=mask, other=0.0).to(tl.float32)
            if scaled:
                branch = branch * scale + bias
            total += branch
            tl.store(total_ptr + place, total.to(total_ptr.dtype.element_ty), mask=mask)
            centred = tl.where(inside, total - tl.sum(total, 0) / columns, 0.0)
            variance = tl.sum(centred * centred, 0) / columns
            normed = centred * tl.rsqrt(variance + epsilon) * weight + shift
            if quantize:
                normed = tl.minimum(tl.maximum(normed * inverse, -448.0), 448.0)
            tl.store(normed_ptr + place, normed.to(normed_ptr.dtype.element_ty), mask=mask)

    @torch.library.triton_op("samforge::sum_norm", mutates_args={})
    def sum_norm(  # noqa: PLR0913, PLR0917
        residual: Tensor,
        product: Tensor,
        weight: Tensor,
        shift: Tensor,
        epsilon: float,
        scale: Tensor | None = None,
        bias: Tensor | None = None,
        inverse: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See :func:`sum_norm_reference`."""
        rows, columns = residual.shape
        total = torch.empty_like(residual)
        normed = torch.empty_like(product, dtype=product.dtype if inverse is None else E4M3)

        def grid(meta: dict[str, Any]) -> tuple[Any, ...]:
            return (triton.cdiv(rows, meta["each"]),)

        torch.library.wrap_triton(_sum_norm)[grid](
            residual, product, weight, shift,
            weight if scale is None else scale, weight if bias is None else bias,
            weight if inverse is None else inverse,
            total, normed, rows, columns,
            # A constant: Inductor passes a number as float64, which has no rsqrt.
            epsilon=epsilon, scaled=scale is not None, quantize=inverse is not None,
            block=triton.next_power_of_2(columns), each=SUM_ROWS, num_warps=4,
        )  # fmt: skip
        return total, normed

    sum_norm.register_kernel("cpu")(sum_norm_reference)
else:
    sum_norm = sum_norm_reference


class SumNorm(nn.Module):
    """Adds a branch to the residual stream and normalizes the sum for the linear that reads it."""

    scale: Tensor | None
    bias: Tensor | None
    inverse: Tensor | None

    def __init__(self, norm: TypedLayerNorm, last: Fp8Linear | None, inverse: float | None) -> None:
        """Take over a norm's weights.

        Args:
            norm: Over the last axis alone.
            last: The branch's last linear where it leaves its scales to this module.
            inverse: One over the E4M3 scale of the linear behind; None where it reads half.
        """
        super().__init__()
        weight, width = norm.weight, norm.shape[-1]
        device = None if weight is None else weight.device
        ones = torch.ones(width, device=device) if weight is None else weight.float()
        zeros = torch.zeros_like(ones)
        self.epsilon = norm.epsilon
        self.register_buffer("weight", ones)
        self.register_buffer("shift", zeros if norm.bias is None else norm.bias.float())
        self.register_buffer("scale", None if last is None else last.scale)
        bias = None if last is None else last.bias
        self.register_buffer("bias", zeros if bias is None else bias.float())
        made = None if inverse is None else torch.tensor([inverse], device=ones.device)
        self.register_buffer("inverse", made)

    def forward(self, residual: Tensor, product: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of two (..., C), and the sum normalized."""
        shape = residual.shape
        flat = (tensor.reshape(-1, shape[-1]).contiguous() for tensor in (residual, product))
        total, normed = sum_norm(
            *flat,
            self.weight,
            self.shift,
            self.epsilon,
            self.scale,
            None if self.scale is None else self.bias,
            self.inverse,
        )
        return total.view(shape), normed.view(shape)


def join_sums(module: GraphModule) -> None:
    """Put a :class:`SumNorm` where a lowered norm reads a sum and only lowered linears read it."""
    graph = module.graph
    for node in list(graph.nodes):
        norm, total = _submodule(module, node), node.args[0] if node.args else None
        if not (
            isinstance(norm, TypedLayerNorm)
            and len(norm.shape) == 1
            and isinstance(total, Node)
            and total.target == torch.ops.aten.add.Tensor
            and not total.kwargs
        ):
            continue
        pair = _residual_and_branch(module, total)
        inverse = _inverse_of_readers(module, node)
        if pair is None or inverse == "mixed":
            continue
        residual, branch = pair
        last = _submodule(module, branch)
        if isinstance(last, Fp8Mlp):
            last = last.second
        if isinstance(last, Fp8Linear):
            last.raw = True
        joined = SumNorm(
            norm,
            last if isinstance(last, Fp8Linear) else None,
            cast("float | None", inverse),
        )
        name = f"lowered_sum_{node.name}"
        module.add_submodule(name, joined)
        with graph.inserting_before(total):
            both = graph.call_module(name, (residual, branch))
            parts = [graph.call_function(operator.getitem, (both, index)) for index in (0, 1)]
        for old, new in zip((total, node), parts, strict=True):
            new.meta = dict(old.meta)
            old.replace_all_uses_with(new)
        graph.erase_node(node)
        graph.erase_node(total)


def _submodule(module: GraphModule, node: Any) -> nn.Module | None:
    if not isinstance(node, Node) or node.op != "call_module":
        return None
    return module.get_submodule(str(node.target))


def _residual_and_branch(module: GraphModule, total: Node) -> tuple[Node, Node] | None:
    """The two summands, the branch being what a lowered linear computes for this sum alone."""
    nodes = [one for one in total.args if isinstance(one, Node)]
    if len(nodes) != 2 or str(nodes[0].meta["val"].shape) != str(nodes[1].meta["val"].shape):
        return None
    for branch, residual in (nodes[::-1], nodes):
        made = _submodule(module, branch)
        half = isinstance(made, TypedLinear) and made.dtype != torch.float32
        if len(branch.users) == 1 and (half or isinstance(made, (Fp8Linear, Fp8Mlp))):
            return residual, branch
    return None


def _inverse_of_readers(module: GraphModule, norm: Node) -> float | str | None:
    """One over the E4M3 scale of what reads a norm, None where that is half, else ``mixed``."""
    wanted: set[float | None] = set()
    for reader in norm.users:
        made = _submodule(module, reader)
        if isinstance(made, Fp8Mlp):
            made = made.first
        if isinstance(made, Fp8Linear):
            wanted.add(made.inverse)
        elif isinstance(made, TypedLinear) and made.dtype != torch.float32:
            wanted.add(None)
        else:
            return "mixed"
    return wanted.pop() if len(wanted) == 1 else "mixed"
