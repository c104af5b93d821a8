"""Pillow's antialiased bilinear resize as two matrix products, on any device."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from samforge.core.errors import ShapeError
from samforge.core.images import ImageSpec

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


class Resizer:
    """Squashes 8-bit pictures to the model's square and normalizes them.

    Equal to :func:`samforge.runtime.image_bchw_from_rgb` to one grey level: that rounds between
    its two passes, this once at the end. On a GPU the products are in half: 8-bit values are exact
    in it, and its rounding of the weights moves a value by at most 0.07 levels.
    """

    def __init__(self, spec: ImageSpec, device: torch.device) -> None:
        self.spec = spec
        self.device = device
        self.dtype = torch.float16 if device.type == "cuda" else torch.float32
        self._weights: OrderedDict[tuple[int, int], tuple[Tensor, Tensor]] = OrderedDict()
        scale = [torch.tensor(values, device=device) * 255 for values in (spec.mean, spec.std)]
        self._mean, self._std = (values[:, None, None] for values in scale)

    def __call__(self, rgb: Tensor) -> Tensor:
        """Prepare one picture.

        Args:
            rgb: (H, W, 3), uint8, on this resizer's device.

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
        values = rgb.to(self.dtype)
        if (height, width) == (self.spec.size, self.spec.size):
            pixels = values.permute(2, 0, 1).float()
        else:
            down, across = self._weights_of(height, width)
            # Rows first: (S, H) @ (H, W * 3) needs no reordering of the channels.
            rows = (down @ values.view(height, width * 3)).view(-1, width, 3)
            pixels = (rows.permute(2, 0, 1) @ across).float()  # [3, S, W] @ [W, S]
            pixels = (pixels + 0.5).floor_().clamp_(0, 255)
        return (pixels - self._mean) / self._std

    def _weights_of(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        key = (height, width)
        if key not in self._weights:
            down, across = (
                torch.from_numpy(resize_weights(size, self.spec.size)).to(self.device, self.dtype)
                for size in key
            )
            self._weights[key] = (down, across.T.contiguous())
            while len(self._weights) > _KEPT_SIZES:
                self._weights.popitem(last=False)
        self._weights.move_to_end(key)
        return self._weights[key]
