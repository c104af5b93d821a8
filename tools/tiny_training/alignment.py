"""Training-only help: words and what they name end up close to each other.

From detection losses alone the model learns shapes within a thousand steps and then sits on a
plateau, naming no colour after five thousand (a scene has few concepts, so the shape mostly tells
which instance is meant). Contrastive alignment of phrases and regions, as in MDETR
(https://arxiv.org/abs/2104.12763) with the pairwise sigmoid loss of SigLIP
(https://arxiv.org/abs/2303.15343), gives every word a gradient of its own from the first step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samforge.models.tiny.scenes import ANY, COLOURS, SHAPES, vocabulary
from tiny_training.data import Batch
from tiny_training.losses import averaged


def phrase_members() -> Tensor:
    """(shapes * colours, phrases) True where a phrase of the vocabulary names the kind."""
    rows = []
    for shape in SHAPES:
        for colour in COLOURS:
            named = {ANY, shape, f"{colour} {ANY}", f"{colour} {shape}"}
            rows.append([phrase in named for phrase in vocabulary()])
    return torch.tensor(rows)


class Alignment(nn.Module):
    """Scores every instance against every phrase; its weights are not part of the model."""

    members: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.region = nn.Linear(channels, channels)
        self.bias = nn.Parameter(torch.tensor(-2.0))
        self.register_buffer("members", phrase_members(), persistent=False)

    def forward(self, coarse: Tensor, phrases: Tensor, phrase_mask: Tensor, batch: Batch) -> Tensor:
        """Loss of telling which phrases name which instance.

        Args:
            coarse: (B, s * s, C), the feature map the detector looks at.
            phrases: (V, S, C), the vocabulary first.
            phrase_mask: (V, S), True where a token is no padding.
            batch: Gives instances and their kinds.
        """
        side = int(coarse.shape[1] ** 0.5)
        numbers = torch.arange(1, batch.kinds.shape[1] + 1, device=coarse.device)
        masks = (batch.instances[:, None] == numbers[:, None, None]).float()  # [B, T, H, W]
        cover = averaged(masks.flatten(0, 1), side).view(*masks.shape[:2], -1)  # [B, T, s * s]
        share = cover / cover.sum(-1, keepdim=True).clamp(min=1e-6)
        regions = self.region(share @ coarse.float())  # [B, T, C]
        known = len(self.members[0])
        tokens = phrase_mask[:known, :, None].float()
        names = (phrases[:known].float() * tokens).sum(1) / tokens.sum(1)  # [V, C]
        logits = regions @ names.T * regions.shape[-1] ** -0.5 + self.bias  # [B, T, V]
        there = batch.kinds >= 0
        truth = self.members[batch.kinds.clamp(min=0)].float()
        entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        return (entropy.mean(-1) * there).sum() / there.sum()
