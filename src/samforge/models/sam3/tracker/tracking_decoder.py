"""Part ``tracking_decoder``: conditioned features -> the object's mask on this frame."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from samforge.models.sam3.tracker.mask_decoder import NO_OBJECT, MaskDecoder, draw
from samforge.models.sam3.tracker.pointer import Pointer

EMPTY_POINTS = 2
"""Tracking asks no point: one that is none stands for it, and the padding point behind it."""


class TrackingDecoder(nn.Module):
    """The best of three masks, and the pointer of the same token.

    Args:
        decoder: With the three mask tokens of a choice.
        pointer: Token -> pointer.
        not_a_point: transformers' ``not_a_point_embed``.
        no_mask: transformers' ``no_mask_embed``.
    """

    def __init__(
        self,
        decoder: MaskDecoder,
        pointer: Pointer,
        not_a_point: nn.Embedding,
        no_mask: nn.Embedding,
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.pointer = pointer
        self.not_a_point = not_a_point
        self.no_mask = no_mask

    def forward(
        self, conditioned: Tensor, high_res_0: Tensor, high_res_1: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Decode all objects of a frame.

        Args:
            conditioned: (N, D, s, s), from part ``memory_attention``.
            high_res_0: (1, D / 8, 4s, 4s).
            high_res_1: (1, D / 4, 2s, 2s).

        Returns:
            Mask logits (N, 1, 4s, 4s), all -1024 where the object is not in the picture; predicted
            IoU (N, 1); object pointer (N, D); object score (N, 1), a logit.
        """
        cells = conditioned.flatten(2).transpose(1, 2) + self.no_mask.weight
        prompts = self.not_a_point.weight.expand(conditioned.shape[0], EMPTY_POINTS, -1)
        decoded = self.decoder(prompts, cells, high_res_0, high_res_1)
        best = decoded.ious.argmax(1, keepdim=True)  # [N, 1]
        # Chosen before it is drawn: a third of the work.
        mask = draw(_row(self.decoder.brushes(decoded.tokens), best), decoded.canvas)
        present = decoded.object_score > 0
        pointer = self.pointer(_row(decoded.tokens, best), present)
        return (
            torch.where(present[..., None, None], mask, NO_OBJECT),
            decoded.ious.gather(1, best),
            cast(Tensor, pointer.squeeze(1)),
            decoded.object_score,
        )


def _row(rows: Tensor, index: Tensor) -> Tensor:
    """One row (N, 1, D) of (N, rows, D) by its number (N, 1)."""
    return rows.gather(1, index[..., None].expand(-1, -1, rows.shape[2]))
