"""Part ``point_decoder``: points, box corners and an earlier mask -> masks of one image."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.models.sam3_tracker_video.configuration_sam3_tracker_video import (
    Sam3TrackerVideoMaskDecoderConfig,
)

from samforge.models.sam3.tracker.mask_decoder import FIXED_TOKENS, MaskDecoder, draw
from samforge.models.sam3.tracker.modules import Vectors
from samforge.models.sam3.tracker.pointer import Pointer
from samforge.models.sam3.tracker.prompts import MaskInput, Points, hiding


class PointDecoder(nn.Module):
    """One mask for a clear prompt, three for a doubtful one; both are given, whoever asks chooses.

    Args:
        decoder: With all four mask tokens.
        pointer: Token -> pointer.
        points: Points -> tokens.
        mask_input: Mask -> features.
        vectors: With ``no_memory_embedding``: a prompted frame sees no memory.
        config: Says when the one mask is taken for unstable.
    """

    def __init__(
        self,
        decoder: MaskDecoder,
        pointer: Pointer,
        points: Points,
        mask_input: MaskInput,
        vectors: Vectors,
        config: Sam3TrackerVideoMaskDecoderConfig,
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.pointer = pointer
        self.points = points
        self.mask_input = mask_input
        self.no_memory = vectors.vector("no_memory_embedding")  # [1, 1, D]
        self.delta: float = config.dynamic_multimask_stability_delta
        # Without the rule every mask is stable enough.
        dynamic = config.dynamic_multimask_via_stability
        self.stable: float = config.dynamic_multimask_stability_thresh if dynamic else 0.0

    def forward(  # noqa: PLR0913, PLR0917  # the inputs of the part
        self,
        tracker_features: Tensor,
        high_res_0: Tensor,
        high_res_1: Tensor,
        points: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Decode the prompts of objects in one image.

        Args:
            tracker_features: (1, D, s, s).
            high_res_0: (1, D / 8, 4s, 4s).
            high_res_1: (1, D / 4, 2s, 2s).
            points: (N, K, 2), in pixels of the square image.
            point_labels: (N, K), as :meth:`Points.forward` says.
            mask_input: (N, 1, 4s, 4s), logits of an earlier answer, within ±32 as Meta feeds them.
            has_mask: (N,), whether there is one.

        Returns:
            Mask logits (N, 4, 4s, 4s), whatever the object score: Meta's predictor for images
            shows them, and its session of a video puts -1024 in their place where the score is not
            above 0; predicted IoU (N, 4); object pointers (N, 4, D), the one of what is absent
            where the score is not above 0; object score (N, 1), a logit. The first of four is the
            single mask of a box or of several points, with the best of the others in its place
            where it is unstable (its pointer stays its own); the others are the choice of three.
        """
        cells = tracker_features.flatten(2).transpose(1, 2) + self.no_memory
        cells = cells + self.mask_input(mask_input, has_mask)
        prompts, counts = self.points(points, point_labels)
        own = FIXED_TOKENS + self.decoder.mask_tokens.num_embeddings
        decoded = self.decoder(prompts, cells, high_res_0, high_res_1, hiding(counts, own))
        masks = draw(self.decoder.brushes(decoded.tokens), decoded.canvas)
        present = decoded.object_score > 0
        pointers = self.pointer(decoded.tokens, present)
        masks, ious = self._settle(masks, decoded.ious)
        return masks, ious, pointers, decoded.object_score

    def _settle(self, masks: Tensor, ious: Tensor) -> tuple[Tensor, Tensor]:
        """Put the best of three in the place of a single mask that is unstable."""
        best = 1 + ious[:, 1:].argmax(1, keepdim=True)  # [N, 1]
        inner = (masks[:, :1] > self.delta).float().sum((2, 3))
        outer = (masks[:, :1] > -self.delta).float().sum((2, 3))
        stable = torch.where(outer > 0, inner / outer, 1.0) >= self.stable  # [N, 1]
        chosen = torch.where(stable, 0, best)
        spread = chosen[..., None, None].expand(-1, -1, *masks.shape[2:])
        return (
            torch.cat([masks.gather(1, spread), masks[:, 1:]], 1),
            torch.cat([ious.gather(1, chosen), ious[:, 1:]], 1),
        )
