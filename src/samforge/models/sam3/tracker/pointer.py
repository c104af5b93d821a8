"""Mask tokens as object pointers: what later frames know an object by."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from samforge.models.sam3.tracker.modules import Vectors


class Pointer(nn.Module):
    """Mask token -> object pointer, or the one pointer of all objects that are not there.

    Args:
        projection: transformers' ``object_pointer_proj``.
        vectors: With ``no_object_pointer``.
    """

    def __init__(self, projection: nn.Module, vectors: Vectors) -> None:
        super().__init__()
        self.projection = projection
        self.absent = vectors.vector("no_object_pointer")  # [1, D]

    def forward(self, tokens: Tensor, present: Tensor) -> Tensor:
        """Project tokens.

        Args:
            tokens: (N, masks, D).
            present: (N, 1), bool.

        Returns:
            (N, masks, D).
        """
        return torch.where(present[..., None], self.projection(tokens), self.absent)
