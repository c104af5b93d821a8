"""Masks of admitted queries at image size: one Triton kernel on a GPU, torch's resize elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from samforge.core.triton_here import HAS_TRITON
from samforge.runtime.device.transfer import host_tensor

_CHUNK_BYTES = 256 << 20  # of masks at image size, or of float32 probabilities on a processor


def masks_above(
    logits: Tensor,
    wanted: Sequence[tuple[int, int]],
    size_hw: tuple[int, int],
    threshold: float,
    out: Tensor,
    copies: torch.cuda.Stream | None = None,
) -> None:
    """Bring masks to image size and compare them with a threshold, some at a time.

    Probabilities are interpolated, as transformers does, not logits.

    Args:
        logits: (P, Q, h, w) of one image, on any device.
        wanted: Phrase and query of each mask.
        size_hw: Height and width of the image.
        threshold: Pixels of a mask have a probability above it.
        out: (K, H, W), bool, on the host; pinned where the logits are on a GPU.
        copies: Stream on which masks go to the host, beside the kernels of what comes next.
    """
    in_kernel = HAS_TRITON and logits.device.type == "cuda"
    pinned = host_tensor((len(wanted), 2), torch.int32, logits.device)
    pinned.numpy()[:] = wanted
    index = pinned.to(logits.device, non_blocking=True)
    height, width = size_hw
    step = max(1, _CHUNK_BYTES // ((1 if in_kernel else 4) * height * width))
    for start in range(0, len(index), step):
        part = slice(start, start + step)
        if in_kernel:
            above = _above_by_kernel(logits, index[part], size_hw, threshold)
        else:
            above = above_reference(logits, index[part], size_hw, threshold)
        if copies is None:
            out[part].copy_(above)
            continue
        copies.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(copies):
            out[part].copy_(above, non_blocking=True)
        above.record_stream(copies)


def above_reference(
    logits: Tensor, index: Tensor, size_hw: tuple[int, int], threshold: float
) -> Tensor:
    """Masks (K, H, W), bool, of the phrases and queries in ``index``, (K, 2)."""
    phrase, query = index.long().unbind(1)
    probabilities = logits[phrase, query].float().sigmoid()
    wide = F.interpolate(probabilities[:, None], size=size_hw, mode="bilinear", align_corners=False)
    return wide[:, 0] > threshold


if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _above(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
        logits_ptr, index_ptr, out_ptr, threshold,
        of_phrase, of_query, of_row, of_column, high, wide, height, width, down, across,
        block: tl.constexpr,
    ):  # fmt: skip
        """A stretch of one row of one mask."""
        mask, row = tl.program_id(2), tl.program_id(1)
        column = tl.program_id(0) * block + tl.arange(0, block)
        phrase = tl.load(index_ptr + mask * 2).to(tl.int64)
        query = tl.load(index_ptr + mask * 2 + 1).to(tl.int64)
        logits_ptr += phrase * of_phrase + query * of_query
        # The source of a pixel's centre, as torch's upsample_bilinear2d has it.
        y = tl.maximum(down * (row.to(tl.float32) + 0.5) - 0.5, 0.0)
        x = tl.maximum(across * (column.to(tl.float32) + 0.5) - 0.5, 0.0)
        top, left = tl.minimum(y.to(tl.int32), high - 1), tl.minimum(x.to(tl.int32), wide - 1)
        low, right = tl.minimum(top + 1, high - 1), tl.minimum(left + 1, wide - 1)
        below, beside = y - top.to(tl.float32), x - left.to(tl.float32)
        upper, lower = logits_ptr + top * of_row, logits_ptr + low * of_row
        left, right = left * of_column, right * of_column
        above = tl.sigmoid(tl.load(upper + left).to(tl.float32)) * (1.0 - beside)
        above += tl.sigmoid(tl.load(upper + right).to(tl.float32)) * beside
        under = tl.sigmoid(tl.load(lower + left).to(tl.float32)) * (1.0 - beside)
        under += tl.sigmoid(tl.load(lower + right).to(tl.float32)) * beside
        value = above * (1.0 - below) + under * below
        place = (mask.to(tl.int64) * height + row) * width + column
        tl.store(out_ptr + place, (value > threshold).to(tl.int8), mask=column < width)

    def _above_by_kernel(
        logits: Tensor, index: Tensor, size_hw: tuple[int, int], threshold: float
    ) -> Tensor:
        """As :func:`above_reference`."""
        height, width = size_hw
        high, wide = logits.shape[-2:]
        out = torch.empty((len(index), height, width), dtype=torch.bool, device=logits.device)
        block = min(1024, triton.next_power_of_2(width))
        _above[triton.cdiv(width, block), height, len(index)](
            logits, index, out.view(torch.int8), threshold, *logits.stride(), high, wide,
            height, width, high / height, wide / width, block=block,
        )  # fmt: skip
        return out
