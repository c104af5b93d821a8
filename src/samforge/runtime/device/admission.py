"""Which queries are found, decided where their scores are: no wait for the host in between."""

from __future__ import annotations

import torch
from torch import Tensor

from samforge.core.triton_here import HAS_TRITON

_RIVALS = 32  # scores that all others are compared with at a time


def admitted_reference(scores: Tensor, threshold: float, slots: int) -> Tensor:
    """Phrase and query of what scores above a threshold.

    Args:
        scores: (P, Q), float32.
        threshold: What is found scores above it.
        slots: Rows of the result.

    Returns:
        (slots, 2), int32: phrase by phrase, best score first and of equal ones the first query, as
        :func:`samforge.runtime.device.results.admitted` has it; -1 in rows for which nothing is
        left.
    """
    order = scores.argsort(dim=-1, descending=True, stable=True)
    found = torch.gather(scores, 1, order) > threshold
    phrase, rank = found.nonzero(as_tuple=True)
    index = torch.full((slots, 2), -1, dtype=torch.int32, device=scores.device)
    count = min(slots, len(phrase))
    index[:count, 0] = phrase[:count].int()
    index[:count, 1] = order[phrase, rank][:count].int()
    return index


if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _admit(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
        scores_ptr, index_ptr, threshold, phrases, queries, of_phrase, of_query, slots,
        padded_slots: tl.constexpr, block: tl.constexpr, rivals: tl.constexpr,
    ):  # fmt: skip
        """One program, so that later phrases know how many earlier ones have taken."""
        slot, query = tl.arange(0, padded_slots), tl.arange(0, block)
        lowest = float("-inf")
        phrase_in = tl.full((padded_slots,), -1, tl.int32)
        query_in = tl.full((padded_slots,), -1, tl.int32)
        taken = 0
        for phrase in range(phrases):
            line = scores_ptr + phrase * of_phrase
            score = tl.load(line + query * of_query, mask=query < queries, other=lowest)
            rank = tl.zeros((block,), tl.int32)
            for start in range(0, block, rivals):
                other = start + tl.arange(0, rivals)
                against = tl.load(line + other * of_query, mask=other < queries, other=lowest)
                better = against[None, :] > score[:, None]
                first = (against[None, :] == score[:, None]) & (other[None, :] < query[:, None])
                rank += tl.sum((better | first).to(tl.int32), 1)
            found = (score > threshold) & (query < queries)
            place = tl.where(found, taken + rank, -1)
            here = tl.where(place[None, :] == slot[:, None], query[None, :], -1)
            here = tl.max(here, 1)
            phrase_in = tl.where(here >= 0, phrase, phrase_in)
            query_in = tl.maximum(query_in, here)
            taken += tl.sum(found.to(tl.int32), 0)
        tl.store(index_ptr + slot * 2, phrase_in, mask=slot < slots)
        tl.store(index_ptr + slot * 2 + 1, query_in, mask=slot < slots)

    def _admitted_by_kernel(scores: Tensor, threshold: float, slots: int) -> Tensor:
        phrases, queries = scores.shape
        index = torch.empty((slots, 2), dtype=torch.int32, device=scores.device)
        _admit[1,](
            scores, index, threshold, phrases, queries, *scores.stride(), slots,
            padded_slots=triton.next_power_of_2(slots),
            block=max(_RIVALS, triton.next_power_of_2(queries)), rivals=_RIVALS, num_warps=8,
        )  # fmt: skip
        return index


def admitted_on_device(scores: Tensor, threshold: float, slots: int) -> Tensor:
    """See :func:`admitted_reference`; one kernel on a GPU."""
    if HAS_TRITON and scores.device.type == "cuda":
        return _admitted_by_kernel(scores, threshold, slots)
    return admitted_reference(scores, threshold, slots)
