"""How far each admitted mask reaches in its logits: a crop at image size holds all of it."""

from __future__ import annotations

import torch
from torch import Tensor

from samforge.core.triton_here import HAS_TRITON
from samforge.runtime.postprocess import MaskLimit

NOTHING = -(1 << 30)
"""Of a mask without a cell above the limit, and of queries that are not admitted."""
_TILE = 8192  # cells in one program


def reach(logits: Tensor, scores: Tensor, threshold: float, limit: MaskLimit) -> Tensor:
    """See :func:`reach_reference`; one kernel on a GPU."""
    if HAS_TRITON and logits.device.type == "cuda":
        return _reach_by_kernel(logits, scores, threshold, limit)
    return reach_reference(logits, scores, threshold, limit)


def reach_reference(logits: Tensor, scores: Tensor, threshold: float, limit: MaskLimit) -> Tensor:
    """First and last row and column in which admitted masks have a cell above their limit.

    Args:
        logits: (B, P, Q, h, w).
        scores: (B, P, Q), float32.
        threshold: What is admitted scores above it.
        limit: What cells exceed, and whether those are logits or probabilities.

    Returns:
        (B, P, Q, 4), int32: first row, last row, first column and last column, the first ones
        negative: what is furthest out is the largest of each. ``NOTHING`` where there is none.
    """
    out = torch.full((*scores.shape, 4), NOTHING, dtype=torch.int32, device=logits.device)
    for image, phrase, query in (scores > threshold).nonzero().tolist():
        values = logits[image, phrase, query].float()
        above = (values.sigmoid() if limit.of_probabilities else values) > safe_limit(limit)
        rows, columns = above.any(1).nonzero()[:, 0], above.any(0).nonzero()[:, 0]
        if len(rows):
            ends = (-rows[0], rows[-1], -columns[0], columns[-1])
            out[image, phrase, query] = torch.stack(ends).int()
    return out


def safe_limit(limit: MaskLimit) -> float:
    """A little below the limit: a mean of cells below it can pass it by rounding only (1e-7)."""
    return limit.value - 1e-6 * max(1.0, min(abs(limit.value), 1e30))


if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _reach(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
        logits_ptr, scores_ptr, out_ptr, threshold, limit,
        of_image, of_phrase, of_query, of_row, of_column,
        score_of_image, score_of_phrase, score_of_query, phrases, queries, high, wide,
        nothing: tl.constexpr, rows: tl.constexpr, block: tl.constexpr,
        probabilities: tl.constexpr,
    ):  # fmt: skip
        """Some rows of one mask; masks that are not admitted are left as they are."""
        one = tl.program_id(0)
        query = one % queries
        phrase = (one // queries) % phrases
        image = one // (queries * phrases)
        scores_ptr += image * score_of_image + phrase * score_of_phrase + query * score_of_query
        if tl.load(scores_ptr) > threshold:
            logits_ptr += image.to(tl.int64) * of_image + phrase.to(tl.int64) * of_phrase
            logits_ptr += query.to(tl.int64) * of_query
            row = tl.program_id(1) * rows + tl.arange(0, rows)
            column = tl.arange(0, block)
            inside = (row[:, None] < high) & (column[None, :] < wide)
            places = logits_ptr + row[:, None] * of_row + column[None, :] * of_column
            value = tl.load(places, mask=inside, other=0.0).to(tl.float32)
            if probabilities:
                value = tl.sigmoid(value)
            above = (inside & (value > limit)).to(tl.int32)
            in_row, in_column = tl.max(above, 1), tl.max(above, 0)
            if tl.max(in_row, 0) > 0:
                out_ptr += one.to(tl.int64) * 4
                tl.atomic_max(out_ptr, tl.max(tl.where(in_row > 0, -row, nothing), 0))
                tl.atomic_max(out_ptr + 1, tl.max(tl.where(in_row > 0, row, nothing), 0))
                tl.atomic_max(out_ptr + 2, tl.max(tl.where(in_column > 0, -column, nothing), 0))
                tl.atomic_max(out_ptr + 3, tl.max(tl.where(in_column > 0, column, nothing), 0))

    def _reach_by_kernel(
        logits: Tensor, scores: Tensor, threshold: float, limit: MaskLimit
    ) -> Tensor:
        out = torch.full((*scores.shape, 4), NOTHING, dtype=torch.int32, device=logits.device)
        high, wide = logits.shape[-2:]
        block = triton.next_power_of_2(wide)
        rows = max(1, _TILE // block)
        _reach[scores.numel(), triton.cdiv(high, rows)](
            logits, scores, out, threshold, safe_limit(limit), *logits.stride(),
            *scores.stride(), *scores.shape[1:], high, wide,
            nothing=NOTHING, rows=rows, block=block, probabilities=limit.of_probabilities,
            num_warps=8,
        )  # fmt: skip
        return out
