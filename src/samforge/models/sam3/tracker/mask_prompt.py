"""Part ``mask_prompt``: a mask that is given -> the object's pointer."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from samforge.models.sam3.tracker.mask_decoder import MaskDecoder
from samforge.models.sam3.tracker.pointer import Pointer
from samforge.models.sam3.tracker.prompts import MaskInput
from samforge.models.sam3.tracker.tracking_decoder import EMPTY_POINTS

SCORE = 10.0
"""Logit of an object whose mask is given: present, or absent where the mask is empty."""


class MaskPrompt(nn.Module):
    """The mask is taken as it is; the decoder only makes the pointer.

    Args:
        decoder: With all four mask tokens: the pointer is that of the single mask. With three, as
            where transformers is the reference: it is that of the best.
        pointer: Token -> pointer.
        mask_input: Mask -> features.
        downsample: transformers' ``mask_downsample``: a mask to the size of mask inputs.
        not_a_point: transformers' ``not_a_point_embed``.
        input_side: Side of mask inputs, 4s; where it is not a quarter of the mask's, the mask is
            enlarged to it, as transformers does.
    """

    def __init__(
        self,
        decoder: MaskDecoder,
        pointer: Pointer,
        mask_input: MaskInput,
        downsample: nn.Conv2d,
        not_a_point: nn.Embedding,
        input_side: int,
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.pointer = pointer
        self.mask_input = mask_input
        self.downsample = downsample
        self.not_a_point = not_a_point
        self.input_side = input_side

    def forward(
        self, tracker_features: Tensor, high_res_0: Tensor, high_res_1: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Make the pointers of objects whose masks are given.

        Args:
            tracker_features: (1, D, s, s), without the no-memory embedding.
            high_res_0: (1, D / 8, 4s, 4s).
            high_res_1: (1, D / 4, 2s, 2s).
            mask: (N, 1, 16s, 16s), 0 or 1; where transformers is the reference (N, 1, S, S).

        Returns:
            Object pointer (N, D); object score (N, 1), 10 or, for an empty mask, -10.
        """
        small = self.downsample(mask)
        if small.shape[-1] != self.input_side:
            small = nn.functional.interpolate(
                small, size=(self.input_side, self.input_side), mode="bilinear"
            )
        there = mask.flatten(1).amax(1) > 0  # [N]
        cells = tracker_features.flatten(2).transpose(1, 2)
        cells = cells + self.mask_input(small, torch.ones_like(there))
        prompts = self.not_a_point.weight.expand(mask.shape[0], EMPTY_POINTS, -1)
        decoded = self.decoder(prompts, cells, high_res_0, high_res_1)
        token = decoded.tokens[:, :1]
        if self.decoder.first:
            best = decoded.ious.argmax(1)[:, None, None]
            token = decoded.tokens.gather(1, best.expand(-1, -1, decoded.tokens.shape[2]))
        there = there[:, None]
        pointer = self.pointer(token, (decoded.object_score > 0) & there)
        return cast(Tensor, pointer.squeeze(1)), torch.where(there, SCORE, -SCORE)
