"""Masks of admitted queries at image size: one Triton kernel on a GPU, torch's resize elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from samforge.core.triton_here import HAS_TRITON
from samforge.runtime.device.transfer import host_tensor
from samforge.runtime.postprocess import MaskLimit

_CHUNK_BYTES = 32 << 20
"""Of masks at image size: while some are copied the next are computed."""
_REFERENCE_BYTES = 256 << 20
"""Of float32 probabilities at image size on a processor."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MasksToHost:
    """Masks on their way to the host."""

    masks: Tensor
    """(K, H, W), bool, on the host; what it holds is valid after :meth:`wait`."""
    steps: tuple[tuple[int, torch.cuda.Event], ...] = ()
    """How many masks are there when an event has passed; nothing where no copy is under way."""

    def wait(self, count: int) -> None:
        """Return when the first ``count`` masks are there."""
        for there, event in self.steps:
            if there >= count > 0:
                event.synchronize()
                return


def masks_to_host(
    logits: Tensor,
    index: Tensor,
    size_hw: tuple[int, int],
    limit: MaskLimit,
    copies: torch.cuda.Stream | None = None,
) -> MasksToHost:
    """Bring masks to image size, compare them with a limit, and copy them, some at a time.

    Args:
        logits: (P, Q, h, w) of one image, on any device.
        index: (K, 2), int32, on that device: phrase and query of each mask. Where the phrase is
            below 0 there is none, and the mask may be anything.
        size_hw: Height and width of the image.
        limit: What pixels of a mask exceed, and whether logits are resized or probabilities.
        copies: Stream on which masks go to the host, beside the kernels of what comes next.
    """
    in_kernel = HAS_TRITON and logits.device.type == "cuda"
    height, width = size_hw
    bytes_each = height * width if in_kernel else 4 * height * width
    step = max(1, (_CHUNK_BYTES if in_kernel else _REFERENCE_BYTES) // bytes_each)
    out = host_tensor((len(index), height, width), torch.bool, logits.device)
    steps = []
    for start in range(0, len(index), step):
        part = slice(start, min(start + step, len(index)))
        if in_kernel:
            above = _above_by_kernel(logits, index[part], size_hw, limit)
        else:
            above = above_reference(logits, index[part], size_hw, limit)
        if copies is None:
            out[part].copy_(above)
            continue
        copies.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(copies):
            out[part].copy_(above, non_blocking=True)
        above.record_stream(copies)
        there = torch.cuda.Event()  # type: ignore[no-untyped-call]
        there.record(copies)
        steps.append((part.stop, there))
    return MasksToHost(masks=out, steps=tuple(steps))


def index_on_device(wanted: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """Phrase and query of each mask, (K, 2), int32, on a device; a GPU is not waited for."""
    index = host_tensor((len(wanted), 2), torch.int32, device)
    if wanted:
        index.numpy()[:] = wanted
    return index.to(device, non_blocking=True)


def above_reference(
    logits: Tensor, index: Tensor, size_hw: tuple[int, int], limit: MaskLimit
) -> Tensor:
    """Masks (K, H, W), bool, of the phrases and queries in ``index``, (K, 2)."""
    phrase, query = index.long().clamp(min=0).unbind(1)
    values = logits[phrase, query].float()
    if limit.of_probabilities:
        values = values.sigmoid()
    wide = F.interpolate(values[:, None], size=size_hw, mode="bilinear", align_corners=False)
    return wide[:, 0] > limit.value


if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _value(pointer, probabilities: tl.constexpr):  # type: ignore[no-untyped-def]
        value = tl.load(pointer).to(tl.float32)
        return tl.sigmoid(value) if probabilities else value

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _above(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
        logits_ptr, index_ptr, out_ptr, threshold,
        of_phrase, of_query, of_row, of_column, high, wide, height, width, down, across,
        block: tl.constexpr, probabilities: tl.constexpr,
    ):  # fmt: skip
        """A stretch of all rows of one mask whose centres lie below one row of its logits.

        What is between two columns is the same for those rows (7 or 8 of a 4K image's).
        """
        mask, top = tl.program_id(2), tl.program_id(1)
        phrase = tl.load(index_ptr + mask * 2).to(tl.int64)
        query = tl.load(index_ptr + mask * 2 + 1).to(tl.int64)
        if phrase < 0:
            return
        column = tl.program_id(0) * block + tl.arange(0, block)
        logits_ptr += phrase * of_phrase + query * of_query
        # The source of a pixel's centre, as torch's upsample_bilinear2d has it.
        x = tl.maximum(across * (column.to(tl.float32) + 0.5) - 0.5, 0.0)
        left = tl.minimum(x.to(tl.int32), wide - 1)
        right = tl.minimum(left + 1, wide - 1)
        beside = x - left.to(tl.float32)
        left, right = left * of_column, right * of_column
        upper = logits_ptr + top * of_row
        lower = logits_ptr + tl.minimum(top + 1, high - 1) * of_row
        above = _value(upper + left, probabilities) * (1.0 - beside)
        above += _value(upper + right, probabilities) * beside
        under = _value(lower + left, probabilities) * (1.0 - beside)
        under += _value(lower + right, probabilities) * beside
        # Rows that may be these and one more at each end: rounding decides as it does below.
        first = ((top.to(tl.float32) + 0.5) / down - 0.5).to(tl.int32) - 1
        last = ((top.to(tl.float32) + 1.5) / down - 0.5).to(tl.int32) + 2
        first = tl.where(top == 0, 0, tl.maximum(first, 0))
        last = tl.where(top == high - 1, height, tl.minimum(last, height))
        out_ptr += mask.to(tl.int64) * height * width
        for row in range(first, last):
            y = tl.maximum(down * (row + 0.5) - 0.5, 0.0)
            mine = tl.minimum(y.to(tl.int32), high - 1) == top
            below = y - top.to(tl.float32)
            value = above * (1.0 - below) + under * below
            place = out_ptr + row * width + column
            tl.store(place, (value > threshold).to(tl.int8), mask=(column < width) & mine)

    def _above_by_kernel(
        logits: Tensor, index: Tensor, size_hw: tuple[int, int], limit: MaskLimit
    ) -> Tensor:
        """As :func:`above_reference`."""
        height, width = size_hw
        high, wide = logits.shape[-2:]
        out = torch.empty((len(index), height, width), dtype=torch.bool, device=logits.device)
        block = min(1024, triton.next_power_of_2(width))
        _above[triton.cdiv(width, block), high, len(index)](
            logits, index, out.view(torch.int8), limit.value, *logits.stride(), high, wide,
            height, width, high / height, wide / width,
            block=block, probabilities=limit.of_probabilities,
        )  # fmt: skip
        return out
