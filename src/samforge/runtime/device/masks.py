"""Masks of admitted queries as bits of crops: one Triton kernel on a GPU, torch's resize elsewhere.

Eight pixels a byte and only around the mask: what goes to the host is a hundredth of the picture's
bytes for a mask that covers a tenth of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from samforge.core.masks import Masks
from samforge.core.packed_crop import PackedCrop
from samforge.core.triton_here import HAS_TRITON
from samforge.runtime.device.places import COLUMNS, Places
from samforge.runtime.device.transfer import host_tensor, wait_for
from samforge.runtime.postprocess import MaskLimit

CHUNK_BYTES = 32 << 20
"""Of bits: while some are copied the next are computed."""
_BLOCK = 128  # bytes of a row in one program: 1024 pixels


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BitsToHost:
    """Masks on their way to the host."""

    bits: Tensor
    """Flat, uint8, on the host; what it holds is valid after :meth:`wait`."""
    there: torch.cuda.Event | None = None
    """Passed when all are there; None where no copy is under way."""

    def wait(self) -> None:
        """Return when all masks are there."""
        if self.there is not None:
            wait_for(self.there)

    def masks(self, places: Places) -> Masks:
        """The masks, in the memory that the copy fills: read none before :meth:`wait`."""
        return self._masks(places, own=False)

    def taken(self, places: Places) -> Masks:
        """The masks in memory of their own, when all are there.

        For masks of many frames that wait or are kept: the memory that a copy fills at full speed
        comes in powers of two, cannot be swapped, and is never given back to the system.
        """
        self.wait()
        return self._masks(places, own=True)

    def _masks(self, places: Places, *, own: bool) -> Masks:
        flat = self.bits.numpy()
        flat = flat.copy() if own else flat
        flat.flags.writeable = False
        packed = []
        for (_, _, top, bottom, left, columns, start), size in zip(
            places.table.tolist(), places.sizes.tolist(), strict=True
        ):
            bits = flat[start : start + size].reshape(bottom - top, columns)
            packed.append(PackedCrop(top=top, left=left, bits=bits))
        return Masks(size_hw=places.size_hw, packed=tuple(packed))


def masks_to_host(
    logits: Tensor, places: Places, limit: MaskLimit, copies: torch.cuda.Stream | None = None
) -> BitsToHost:
    """Bring masks to image size, compare them with a limit, and copy the bits of their crops.

    Args:
        logits: (P, Q, h, w) of one image, on any device.
        places: The masks and their crops.
        limit: What pixels of a mask exceed, and whether logits are resized or probabilities.
        copies: Stream on which masks go to the host, beside the kernels of what comes next.
    """
    out = host_tensor((places.total,), torch.uint8, logits.device)
    start, there = 0, None
    for group in places.groups(CHUNK_BYTES):
        table = table_on_device(group, logits.device)
        total = group.total
        bits = _bits(logits, table, total, group.size_hw, limit)
        there = _copied(bits, out[start : start + total], copies)
        start += total
    return BitsToHost(bits=out, there=there)


def bits_ahead(
    logits: Tensor,
    table: Tensor,
    capacity: int,
    size_hw: tuple[int, int],
    limit: MaskLimit,
    copies: torch.cuda.Stream | None = None,
) -> BitsToHost:
    """The same for masks whose crops only the device knows.

    Args:
        logits: (P, Q, h, w) of one image.
        table: (K, 7), int32, on its device: see :func:`places.places_on_device`.
        capacity: Bytes that are copied; masks that do not fit wholly are not written.
        size_hw: Height and width of the image.
        limit: What pixels of a mask exceed.
        copies: As in :func:`masks_to_host`.
    """
    out = host_tensor((capacity,), torch.uint8, logits.device)
    bits = _bits(logits, table, capacity, size_hw, limit)
    return BitsToHost(bits=out, there=_copied(bits, out, copies))


def _copied(bits: Tensor, out: Tensor, copies: torch.cuda.Stream | None) -> torch.cuda.Event | None:
    """Start a copy; returns what has passed when it is done."""
    if copies is None:
        out.copy_(bits)
        return None
    copies.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(copies):
        out.copy_(bits, non_blocking=True)
    bits.record_stream(copies)
    there = torch.cuda.Event()  # type: ignore[no-untyped-call]
    there.record(copies)
    return there


def table_on_device(places: Places, device: torch.device) -> Tensor:
    """The table of places, (K, 7), int32, on a device; a GPU is not waited for."""
    table = host_tensor((len(places), COLUMNS), torch.int32, device)
    table.numpy()[:] = places.table
    return table.to(device, non_blocking=True)


def _bits(
    logits: Tensor, table: Tensor, capacity: int, size_hw: tuple[int, int], limit: MaskLimit
) -> Tensor:
    if HAS_TRITON and logits.device.type == "cuda":
        return _bits_by_kernel(logits, table, capacity, size_hw, limit)
    return bits_reference(logits, table, capacity, size_hw, limit)


def bits_reference(
    logits: Tensor, table: Tensor, capacity: int, size_hw: tuple[int, int], limit: MaskLimit
) -> Tensor:
    """Bits of the crops in ``table``, flat, uint8; masks beyond ``capacity`` bytes are left out."""
    out = torch.zeros(capacity, dtype=torch.uint8, device=logits.device)
    weights = 2 ** torch.arange(7, -1, -1, device=logits.device)
    for phrase, query, top, bottom, left, columns, start in table.tolist():
        stop = start + (bottom - top) * columns
        if phrase < 0 or stop == start or stop > capacity:
            continue
        above = above_reference(logits[phrase, query], size_hw, limit)
        part = above[top:bottom, left : left + 8 * columns].int()
        part = F.pad(part, (0, 8 * columns - part.shape[1]))
        packed = (part.view(bottom - top, columns, 8) * weights).sum(-1)
        out[start:stop] = packed.flatten().to(torch.uint8)
    return out


def above_reference(logits: Tensor, size_hw: tuple[int, int], limit: MaskLimit) -> Tensor:
    """One mask (H, W), bool, of its logits (h, w)."""
    values = logits.float()
    if limit.of_probabilities:
        values = values.sigmoid()
    wide = F.interpolate(values[None, None], size=size_hw, mode="bilinear", align_corners=False)
    return wide[0, 0] > limit.value


if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _value(pointer, probabilities: tl.constexpr):  # type: ignore[no-untyped-def]
        value = tl.load(pointer).to(tl.float32)
        return tl.sigmoid(value) if probabilities else value

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _crop_bits(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
        logits_ptr, table_ptr, out_ptr, capacity, limit,
        of_phrase, of_query, of_row, of_column, high, wide, height, width, down, across,
        fields: tl.constexpr, block: tl.constexpr, probabilities: tl.constexpr,
    ):  # fmt: skip
        """A stretch of those rows of a crop whose centres lie below one row of its logits.

        What is between two columns is the same for those rows (7 or 8 of a 4K image's).
        """
        top, stretch = tl.program_id(1), tl.program_id(0)
        table_ptr += tl.program_id(2) * fields
        phrase = tl.load(table_ptr).to(tl.int64)
        query = tl.load(table_ptr + 1).to(tl.int64)
        crop_top, crop_bottom = tl.load(table_ptr + 2), tl.load(table_ptr + 3)
        crop_left, columns = tl.load(table_ptr + 4), tl.load(table_ptr + 5)
        start = tl.load(table_ptr + 6).to(tl.int64)
        fits = start + (crop_bottom - crop_top).to(tl.int64) * columns <= capacity
        # Rows that may be these and one more at each end: rounding decides as it does below.
        first = ((top.to(tl.float32) + 0.5) / down - 0.5).to(tl.int32) - 1
        last = ((top.to(tl.float32) + 1.5) / down - 0.5).to(tl.int32) + 2
        first = tl.maximum(tl.where(top == 0, 0, first), crop_top)
        last = tl.minimum(tl.where(top == high - 1, height, last), crop_bottom)
        if (phrase >= 0) & fits & (first < last) & (stretch * block < columns):
            byte = stretch * block + tl.arange(0, block)
            bit = tl.arange(0, 8)
            column = crop_left + byte[:, None] * 8 + bit[None, :]
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
            weight = tl.where(column < width, (128 >> bit)[None, :], 0)
            bytes_ptr = out_ptr + start + byte
            for row in range(first, last):
                y = tl.maximum(down * (row + 0.5) - 0.5, 0.0)
                mine = tl.minimum(y.to(tl.int32), high - 1) == top
                below = y - top.to(tl.float32)
                value = above * (1.0 - below) + under * below
                packed = tl.sum(tl.where(value > limit, weight, 0), 1)
                place = bytes_ptr + (row - crop_top) * columns
                tl.store(place, packed.to(tl.uint8), mask=(byte < columns) & mine)

    def _bits_by_kernel(
        logits: Tensor, table: Tensor, capacity: int, size_hw: tuple[int, int], limit: MaskLimit
    ) -> Tensor:
        """As :func:`bits_reference`, but what no mask covers may be anything."""
        height, width = size_hw
        high, wide = logits.shape[-2:]
        out = torch.empty(capacity, dtype=torch.uint8, device=logits.device)
        stretches = triton.cdiv(triton.cdiv(width, 8) + 1, _BLOCK)
        _crop_bits[stretches, high, len(table)](
            logits, table, out, capacity, limit.value, *logits.stride(), high, wide,
            height, width, high / height, wide / width,
            fields=COLUMNS, block=_BLOCK, probabilities=limit.of_probabilities,
        )  # fmt: skip
        return out
