"""Points, box corners and mask inputs as tokens and features of the mask decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.models.sam3_tracker_video.modeling_sam3_tracker_video import (
    Sam3TrackerVideoPromptEncoder,
)

from samforge.models.sam3.text import MASKED
from samforge.models.sam3.tracker.mask_decoder import encode_places

NOT_A_POINT = -1
"""Label of a point that is none but has a token, as in Meta's code."""
PADDING = -10
"""Label of a place in a batch that stays empty: it has no part in anything."""


class Points(nn.Module):
    """Points -> tokens.

    Meta's code puts a point that is none behind all others, and so does this. Objects with fewer
    points than others are filled up with :data:`PADDING`, which is hidden: every object of a batch
    is answered as it would be alone. (transformers lets such places be seen, as zeros.)
    """

    def __init__(self, encoder: Sam3TrackerVideoPromptEncoder, image_size: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.places = encoder.shared_embedding
        self.kinds, self.none = encoder.point_embed, encoder.not_a_point_embed

    def forward(self, points: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Encode points.

        Args:
            points: (N, K, 2), x and y in pixels of the square image.
            labels: (N, K), int64: 1 on the object, 0 beside it, 2 and 3 the upper left and lower
                right corner of its box, -1 no point, -10 padding. A row of padding alone is a
                prompt without points.

        Returns:
            Tokens (N, K + 1, D) and which of them count, (N, K + 1).
        """
        place = encode_places((points + 0.5) / self.image_size, self.places.positional_embedding)
        real = (labels >= 0)[..., None]
        tokens = torch.where(real, place + self.kinds(labels.clamp(min=0)), self.none.weight)
        last = self.none.weight.expand(tokens.shape[0], 1, -1)
        counts = labels != PADDING
        return torch.cat([tokens, last], 1), torch.cat([counts, counts.any(1, keepdim=True)], 1)


class MaskInput(nn.Module):
    """An earlier mask of the object -> dense features, or those of none."""

    def __init__(self, embed: nn.Module, none: nn.Embedding) -> None:
        super().__init__()
        self.embed, self.none = embed, none

    def forward(self, mask_input: Tensor, has_mask: Tensor) -> Tensor:
        """Encode masks.

        Args:
            mask_input: (N, 1, 4s, 4s), logits.
            has_mask: (N,), bool: False where the mask is to be ignored.

        Returns:
            (N, L, D).
        """
        dense = self.embed(mask_input).flatten(2).transpose(1, 2)
        return torch.where(has_mask[:, None, None], dense, self.none.weight)


def hiding(counts: Tensor, before: int) -> Tensor:
    """Bias (N, 1, 1, before + K) that hides tokens; those ``before`` always count."""
    fixed = counts.new_ones((1, before)).expand(counts.shape[0], -1)
    return torch.where(torch.cat([fixed, counts], 1), 0.0, MASKED)[:, None, None]
