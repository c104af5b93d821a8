"""Pillow's antialiased bilinear resize: two Triton kernels on a GPU, two products elsewhere."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from samforge.core.errors import ShapeError
from samforge.core.images import ImageSpec
from samforge.core.triton_here import HAS_TRITON

COLUMNS = 128
"""Columns of the target in one program."""
_KEPT_SIZES = 8  # a stream rarely mixes more; 4K weights take 12 MB


def resize_weights(source: int, target: int) -> npt.NDArray[np.float64]:
    """Weight of every source pixel in every target pixel along one axis.

    Source: ``precompute_coeffs`` in Pillow's ``src/libImaging/Resample.c`` with its triangle
    filter.

    Returns:
        (target, source), rows that sum to 1.
    """
    scale = source / target
    reach = max(scale, 1.0)
    centre = (np.arange(target)[:, None] + 0.5) * scale
    first = np.maximum(np.floor(centre - reach + 0.5), 0)
    last = np.minimum(np.floor(centre + reach + 0.5), source)
    pixel = np.arange(source)[None]
    weights = np.maximum(1.0 - np.abs((pixel - centre + 0.5) / reach), 0.0)
    weights[(pixel < first) | (pixel >= last)] = 0.0
    normalized: npt.NDArray[np.float64] = weights / weights.sum(1, keepdims=True)
    return normalized


def taps_from_weights(
    weights: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """First source pixel of every target pixel, (T,), and its weights from there on, (taps, T)."""
    first = (weights > 0).argmax(1)
    taps = int((weights > 0).sum(1).max())
    first = np.minimum(first, weights.shape[1] - taps)
    places = first[:, None] + np.arange(taps)[None]
    taken = np.take_along_axis(weights, places, 1).T.astype(np.float32)
    return first.astype(np.int32), np.ascontiguousarray(taken)


class Resizer:
    """Squashes 8-bit pictures to the model's square and normalizes them.

    Equal to :func:`samforge.runtime.image_bchw_from_rgb` to one grey level: that rounds between
    its two passes, this once at the end. On a GPU what lies between the passes is half, which
    moves a value by at most 0.07 levels.
    """

    def __init__(self, spec: ImageSpec, device: torch.device) -> None:
        self.spec = spec
        self.device = device
        self.dtype = torch.float16 if device.type == "cuda" else torch.float32
        self._in_kernels = device.type == "cuda" and HAS_TRITON
        self._tables: OrderedDict[tuple[int, int], tuple[Tensor, ...]] = OrderedDict()
        scale = [torch.tensor(values, device=device) * 255 for values in (spec.mean, spec.std)]
        self._mean, self._std = (values[:, None, None] for values in scale)
        self._scales = torch.cat([scale[0], 1.0 / scale[1]]).float()

    def __call__(self, rgb: Tensor, out: Tensor | None = None) -> Tensor:
        """Prepare one picture.

        Args:
            rgb: (H, W, 3), uint8, on this resizer's device.
            out: Where the result goes, (3, size, size), float32, contiguous; None makes it.

        Returns:
            (3, size, size), float32.

        Raises:
            ShapeError: ``rgb`` has another type, shape or device.
        """
        if rgb.dtype != torch.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.numel() == 0:
            raise ShapeError(
                f"Preprocessing wants uint8 (H, W, 3), got {str(rgb.dtype).removeprefix('torch.')} "
                f"{tuple(rgb.shape)}. samforge.media.read_image gives that of any picture."
            )
        if rgb.device.type != self.device.type:
            raise ShapeError(
                f"Preprocessing runs on {self.device.type}, got a picture on {rgb.device.type}. "
                "Move it first: rgb.to(device)."
            )
        height, width = rgb.shape[:2]
        same = (height, width) == (self.spec.size, self.spec.size)
        if self._in_kernels and not same:
            if out is None:
                out = torch.empty(3, self.spec.size, self.spec.size, device=self.device)
            _resize_by_kernels(rgb.contiguous(), out, self._scales, self._tables_of(height, width))
            return out
        values = rgb.to(self.dtype)
        if same:
            pixels = values.permute(2, 0, 1).float()
        else:
            down, across = self._tables_of(height, width)
            # Rows first: (S, H) @ (H, W * 3) needs no reordering of the channels.
            rows = (down @ values.view(height, width * 3)).view(-1, width, 3)
            pixels = (rows.permute(2, 0, 1) @ across).float()  # [3, S, W] @ [W, S]
            pixels = (pixels + 0.5).floor_().clamp_(0, 255)
        return torch.div(pixels - self._mean, self._std, out=out)

    def _tables_of(self, height: int, width: int) -> tuple[Tensor, ...]:
        """Taps of both axes for the kernels, (first, weights) each; else the two matrices."""
        key = (height, width)
        if key not in self._tables:
            down, across = (resize_weights(size, self.spec.size) for size in key)
            arrays: tuple[npt.NDArray[np.generic], ...]
            if self._in_kernels:
                arrays = (*taps_from_weights(down), *taps_from_weights(across))
            else:
                arrays = (down.astype(np.float32), np.ascontiguousarray(across.T, np.float32))
            made = (torch.from_numpy(array).to(self.device) for array in arrays)
            self._tables[key] = tuple(
                table if self._in_kernels else table.to(self.dtype) for table in made
            )
            while len(self._tables) > _KEPT_SIZES:
                self._tables.popitem(last=False)
        self._tables.move_to_end(key)
        return self._tables[key]


if HAS_TRITON:
    import triton
    import triton.language as tl

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _rows(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
        rgb_ptr, out_ptr, first_ptr, weight_ptr, values, size, taps, block: tl.constexpr,
    ):  # fmt: skip
        """One row of the target over full rows of the source: (H, W * 3) to (S, W * 3)."""
        row = tl.program_id(0)
        place = tl.program_id(1) * block + tl.arange(0, block)
        inside = place < values
        first = tl.load(first_ptr + row).to(tl.int64)
        total = tl.zeros((block,), tl.float32)
        for tap in range(taps):
            weight = tl.load(weight_ptr + tap * size + row)
            source = rgb_ptr + (first + tap) * values + place
            total += weight * tl.load(source, mask=inside, other=0).to(tl.float32)
        tl.store(out_ptr + row.to(tl.int64) * values + place, total.to(tl.float16), mask=inside)

    @triton.jit  # type: ignore[untyped-decorator,unused-ignore]
    def _columns(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
        rows_ptr, out_ptr, first_ptr, weight_ptr, scale_ptr, width, size,
        taps, block: tl.constexpr,
    ):  # fmt: skip
        """Part of a row: (S, W, 3) to (3, S, S), rounded to 8 bits and normalized.

        A program takes all channels of its columns: what they read lies side by side.
        """
        row, column = tl.program_id(0), tl.program_id(1) * block + tl.arange(0, block)
        inside = column < size
        first = tl.load(first_ptr + column, mask=inside, other=0)
        source = rows_ptr + (row.to(tl.int64) * width + first) * 3
        red = tl.zeros((block,), tl.float32)
        green = tl.zeros((block,), tl.float32)
        blue = tl.zeros((block,), tl.float32)
        for tap in range(taps):
            weight = tl.load(weight_ptr + tap * size + column, mask=inside, other=0.0)
            red += weight * tl.load(source + tap * 3, mask=inside, other=0.0).to(tl.float32)
            green += weight * tl.load(source + tap * 3 + 1, mask=inside, other=0.0).to(tl.float32)
            blue += weight * tl.load(source + tap * 3 + 2, mask=inside, other=0.0).to(tl.float32)
        place = row.to(tl.int64) * size + column
        for channel in tl.static_range(3):
            total = red if channel == 0 else green if channel == 1 else blue
            value = tl.minimum(tl.maximum(tl.floor(total + 0.5), 0.0), 255.0)
            mean, inverse = tl.load(scale_ptr + channel), tl.load(scale_ptr + 3 + channel)
            at = out_ptr + channel * size.to(tl.int64) * size + place
            tl.store(at, (value - mean) * inverse, mask=inside)

    def _resize_by_kernels(
        rgb: Tensor, out: Tensor, scales: Tensor, tables: tuple[Tensor, ...]
    ) -> None:
        """(H, W, 3), uint8, into (3, S, S), float32."""
        width, size = rgb.shape[1], out.shape[-1]
        down_first, down, across_first, across = tables
        rows = torch.empty(size, width, 3, dtype=torch.float16, device=rgb.device)
        block = 1024
        _rows[size, triton.cdiv(width * 3, block)](
            rgb, rows, down_first, down, width * 3, size, taps=down.shape[0], block=block
        )
        _columns[size, triton.cdiv(size, COLUMNS)](
            rows, out, across_first, across, scales, width, size,
            taps=across.shape[0], block=COLUMNS,
        )  # fmt: skip
