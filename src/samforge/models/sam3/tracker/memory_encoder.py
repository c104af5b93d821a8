"""Parts ``memory_encoder`` and ``memory_encoder_text``: features and masks -> memories."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from transformers.models.sam3_tracker_video.configuration_sam3_tracker_video import (
    Sam3TrackerVideoConfig,
)
from transformers.models.sam3_tracker_video.modeling_sam3_tracker_video import (
    Sam3TrackerVideoMemoryEncoder,
)

from samforge.core.axes import MOST_OBJECTS
from samforge.models.sam3.tracker.modules import Vectors

META_STEPS = ("image", "soften", "memory")
"""Meta's session of points and masks makes shares at the image's size, and enlarges those."""
TRANSFORMERS_STEPS = ("image", "memory", "soften")
"""transformers' session enlarges logits, and makes shares of them last."""
EXCLUSIVE = (META_STEPS,)
"""Where a pixel of objects that are prompted together belongs to the one with the highest logit."""
TEXT_STEPS = ("memory", "soften")
"""Videos asked by text: logits are enlarged at once. Both references agree."""

LOWEST = -1.0e4
"""Below every logit, and finite in half precision."""


class MemoryEncoder(nn.Module):
    """Memories of all objects of a frame.

    Args:
        encoder: transformers' modules.
        vectors: With ``occlusion_spatial_embedding_parameter``.
        config: Of the tracker.
        steps: What happens to a mask, in order: enlarged to the ``image`` and to the ``memory``
            encoder's input, and made soft.
        sizes: Side of the two in pixels: S and 16s.
    """

    def __init__(
        self,
        encoder: Sam3TrackerVideoMemoryEncoder,
        vectors: Vectors,
        config: Sam3TrackerVideoConfig,
        *,
        steps: tuple[str, ...],
        sizes: tuple[int, int],
    ) -> None:
        super().__init__()
        self.steps = steps
        self.sizes = dict(zip(("image", "memory"), sizes, strict=True))
        self.exclusive = steps in EXCLUSIVE
        self.register_buffer("numbers", torch.arange(MOST_OBJECTS), persistent=False)
        self.scale: float = config.sigmoid_scale_for_mem_enc
        self.bias: float = config.sigmoid_bias_for_mem_enc
        self.mask_downsampler = encoder.mask_downsampler
        self.feature_projection = encoder.feature_projection
        self.memory_fuser = encoder.memory_fuser
        self.projection = encoder.projection
        self.occluded = vectors.vector("occlusion_spatial_embedding_parameter")  # [1, C]

    def forward(
        self,
        tracker_features: Tensor,
        mask_logits: Tensor,
        object_score: Tensor,
        from_prompt: Tensor,
    ) -> Tensor:
        """Encode memories.

        Args:
            tracker_features: (1, D, s, s), of the frame.
            mask_logits: (N, 1, 4s, 4s).
            object_score: (N, 1), logits.
            from_prompt: (N,), bool: whether the mask answers a prompt of this frame. It is then
                taken as it is, inside or outside, and not softly. In Meta's session such objects
                of one call share no pixel: the highest logit has it, the first of equal ones.

        Returns:
            (N, s * s, C) in float32. Meta and transformers store it as bfloat16; part
            ``memory_attention`` rounds what it reads.
        """
        mask = self._mask(mask_logits, from_prompt[:, None, None, None])
        features = self.feature_projection(tracker_features) + self.mask_downsampler(mask)
        memory = self.projection(self.memory_fuser(features)).flatten(2).transpose(1, 2)
        absent = (object_score <= 0)[..., None]
        return cast(Tensor, memory + torch.where(absent, self.occluded, 0.0))

    def _mask(self, mask: Tensor, from_prompt: Tensor) -> Tensor:
        for step in self.steps:
            if step == "soften":
                inside = mask > 0
                if self.exclusive:
                    inside = inside & self._highest(mask, from_prompt)
                share = torch.where(from_prompt, inside.to(mask.dtype), mask.sigmoid())
                mask = share * self.scale + self.bias
            else:
                side = self.sizes[step]
                mask = nn.functional.interpolate(mask, size=(side, side), mode="bilinear")
        return mask

    def _highest(self, mask: Tensor, from_prompt: Tensor) -> Tensor:
        """Pixels (N, 1, S, S) where no other prompted object has a higher logit."""
        highest = torch.where(from_prompt, mask, LOWEST).argmax(0, keepdim=True)
        numbers = cast(Tensor, self.numbers)[: mask.shape[0]]
        return highest == numbers[:, None, None, None]
