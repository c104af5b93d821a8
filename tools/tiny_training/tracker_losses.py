"""Losses of masks, their IoUs and object scores, and the clicks that errors ask for.

Source: ``MultiStepMultiMasksAndIous`` in SAM 2's training/loss_fns.py and
``sample_random_points_from_errors`` in its sam2_utils.py (facebookresearch/sam2).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

WEIGHTS = {"focal": 20.0, "dice": 1.0, "iou": 1.0, "score": 1.0}
ALPHA, GAMMA = 0.25, 2.0
HALF = 2
"""Candidates are compared on pictures so many times smaller."""
THICKNESS = 15
"""Side in pixels of the window that finds the thick of an error."""


class Answer(NamedTuple):
    """What a decoder said to N objects."""

    masks: Tensor
    """(N, 4, 4s, 4s), logits."""
    ious: Tensor
    """(N, 4)."""
    score: Tensor
    """(N, 1), logit."""


def focal(logits: Tensor, truth: Tensor) -> Tensor:
    """Mean sigmoid focal loss over the last two axes (https://arxiv.org/abs/1708.02002)."""
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    probability = logits.sigmoid()
    missed = truth + probability - 2 * truth * probability
    weight = ALPHA * truth + (1 - ALPHA) * (1 - truth)
    return (weight * missed**GAMMA * entropy).mean((-2, -1))


def dice(logits: Tensor, truth: Tensor) -> Tensor:
    """Dice loss over the last two axes (https://arxiv.org/abs/1606.04797), plus 1 as in SAM."""
    probability = logits.sigmoid()
    overlap = (probability * truth).sum((-2, -1))
    total = probability.sum((-2, -1)) + truth.sum((-2, -1))
    return 1 - (2 * overlap + 1) / (total + 1)


def answer_losses(
    answer: Answer, truth: Tensor, allowed: Tensor, weight: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """Grade an answer: the best of the masks that are allowed, all of their IoUs, the score.

    Args:
        answer: Of the decoder, in float32.
        truth: (N, H, W), 0 or 1; an object without a pixel is absent, and has no mask to grade.
        allowed: (N, 4), bool: masks that stand to choice for this prompt.
        weight: (N,), 0 for rows that only fill the batch.

    Returns:
        Each loss, weighted, and the true IoU of the best allowed mask of each row, (N,).
    """
    present = truth.flatten(1).amax(1)
    with torch.no_grad():
        small = F.avg_pool2d(truth[:, None], HALF)  # [N, 1, h, w]
        enlarged = F.interpolate(answer.masks, size=small.shape[-2:], mode="bilinear")
        cost = WEIGHTS["focal"] * focal(enlarged, small.expand_as(enlarged))
        cost = cost + WEIGHTS["dice"] * dice(enlarged, small)
        best = cost.masked_fill(~allowed, torch.inf).argmin(1)
        inside, wanted = enlarged > 0, small > 0.5
        common = (inside & wanted).sum((2, 3)).float()
        union = (inside | wanted).sum((2, 3)).float()
        ious = common / union.clamp(min=1)
    rows = torch.arange(len(best), device=best.device)
    chosen = answer.masks[rows, best][:, None]
    logits = F.interpolate(chosen, size=truth.shape[-2:], mode="bilinear")[:, 0]
    shown = weight * present
    off = ((answer.ious - ious).abs() * allowed).sum(1) / allowed.sum(1)
    entropy = F.binary_cross_entropy_with_logits(answer.score[:, 0], present, reduction="none")
    share = 1 / weight.sum().clamp(min=1)
    losses = {
        "focal": (focal(logits, truth) * shown).sum() * share,
        "dice": (dice(logits, truth) * shown).sum() * share,
        "iou": (off * shown).sum() * share,
        "score": (entropy * weight).sum() * share,
    }
    return {name: WEIGHTS[name] * loss for name, loss in losses.items()}, ious[rows, best]


@torch.no_grad()
def click(region: Tensor, generator: torch.Generator, *, thick: float) -> Tensor:
    """A pixel of each region: any, or one where the region is thick.

    Args:
        region: (N, H, W), bool.
        generator: Of the region's device.
        thick: Share of the regions that are asked in their thick.

    Returns:
        (N, 2), x and y; any pixel of the picture where a region is empty.
    """
    count, _, width = region.shape
    spread = F.avg_pool2d(region[:, None].float(), THICKNESS, 1, THICKNESS // 2)[:, 0]
    draws = torch.rand(region.shape, generator=generator, device=region.device)
    kind = torch.rand((count, 1, 1), generator=generator, device=region.device) < thick
    value = torch.where(kind, spread + 0.05 * draws, draws)
    value = value - 2 * (~region).float()
    index = value.flatten(1).argmax(1)
    return torch.stack([index % width, index // width], 1).float()


@torch.no_grad()
def correction(logits: Tensor, truth: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Where a mask is wrong, as a click; beside the object where nothing is wrong.

    Args:
        logits: (N, 1, 4s, 4s).
        truth: (N, H, W), 0 or 1.
        generator: Of their device.

    Returns:
        (N, 2), x and y, and (N,), label 1 or 0.
    """
    enlarged = F.interpolate(logits, size=truth.shape[-2:], mode="bilinear")[:, 0]
    wanted = truth > 0.5
    wrong = (enlarged > 0) ^ wanted
    some = wrong.flatten(1).any(1)[:, None, None]
    point = click(torch.where(some, wrong, ~wanted), generator, thick=0.5)
    x, y = point.long().unbind(1)
    rows = torch.arange(len(point), device=point.device)
    return point, wanted[rows, y, x].long()


@torch.no_grad()
def loose_boxes(truth: Tensor, generator: torch.Generator, *, looseness: float) -> Tensor:
    """Corners (N, 2, 2) of boxes around masks (N, H, W), shifted by up to a share of their size."""
    size = truth.shape[-1]
    steps = torch.arange(size, device=truth.device)

    def ends(line: Tensor) -> tuple[Tensor, Tensor]:
        low = torch.where(line, steps, size).amin(1)
        return low.clamp(max=size - 1).float(), torch.where(line, steps, 0).amax(1).float() + 1

    inside = truth > 0.5
    left, right = ends(inside.any(1))
    top, bottom = ends(inside.any(2))
    low, high = torch.stack([left, top], 1), torch.stack([right, bottom], 1)
    corners = torch.stack([low, high], 1)
    draws = torch.rand(corners.shape, generator=generator, device=truth.device) * 2 - 1
    return (corners + looseness * draws * (high - low)[:, None]).clamp(0, size)
