"""Set prediction losses: every decoder layer is matched and graded, masks at full resolution."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from tiny_training.data import Batch
from tiny_training.forward import Outputs

WEIGHTS = {
    "class": 4.0,
    "box_l1": 5.0,
    "box_giou": 2.0,
    "presence": 1.0,
    "mask_bce": 8.0,
    "mask_dice": 5.0,
    "semantic": 2.0,
    "alignment": 20.0,
}
"""Weight of each loss; those of boxes and classes count once for every decoder layer."""


def generalized_iou(first: Tensor, second: Tensor) -> Tensor:
    """GIoU of boxes (..., 4) as corners (https://arxiv.org/abs/1902.09630), broadcasting."""
    low = torch.maximum(first[..., :2], second[..., :2])
    high = torch.minimum(first[..., 2:], second[..., 2:])
    overlap = (high - low).clamp(min=0).prod(-1)
    areas = [(b[..., 2:] - b[..., :2]).clamp(min=0).prod(-1) for b in (first, second)]
    union = areas[0] + areas[1] - overlap + 1e-7
    hull_low = torch.minimum(first[..., :2], second[..., :2])
    hull_high = torch.maximum(first[..., 2:], second[..., 2:])
    hull = (hull_high - hull_low).clamp(min=0).prod(-1) + 1e-7
    return overlap / union - (hull - union) / hull


@torch.no_grad()
def matching_cost(outputs: Outputs, target_boxes: Tensor) -> Tensor:
    """(L, N, T, Q) what it costs to answer target t with query q.

    Args:
        outputs: Of the detector.
        target_boxes: (N, T, 4) corners.
    """
    probability = outputs.logits.sigmoid()[:, :, None]  # [L, N, 1, Q]
    predicted, wanted = outputs.boxes_xyxy[:, :, None], target_boxes[None, :, :, None]
    distance = (predicted - wanted).abs().sum(-1)
    cost = 5 * distance - 2 * generalized_iou(predicted, wanted) - 2 * probability
    return cost.nan_to_num(1e3)


def match(cost: npt.NDArray[np.float32], counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Best query of every target by the Hungarian method, one problem a layer and prompt.

    Args:
        cost: (L, N, T, Q).
        counts: (N,) targets of each prompt; they come first along T.

    Returns:
        (L, N, T), Q where there is no target.
    """
    layers, prompts, slots, queries = cost.shape
    matched = np.full((layers, prompts, slots), queries, np.int64)
    for prompt in np.flatnonzero(counts).tolist():
        count = int(counts[prompt])
        for layer in range(layers):
            # With fewer rows than columns the row indices come back as 0, 1, …
            matched[layer, prompt, :count] = linear_sum_assignment(cost[layer, prompt, :count])[1]
    return matched


@lru_cache(maxsize=8)
def _bilinear(cells: int, pixels: int, device: torch.device) -> Tensor:
    """(pixels, cells) weights of ``interpolate(mode="bilinear", align_corners=False)``."""
    eye = torch.eye(cells)[None]
    return F.interpolate(eye, size=pixels, mode="linear", align_corners=False)[0].T.to(device)


@lru_cache(maxsize=8)
def _average(pixels: int, cells: int, device: torch.device) -> Tensor:
    """(cells, pixels) weights that average exactly the area each cell covers."""
    edges = torch.arange(cells + 1, dtype=torch.float64) * pixels / cells
    pixel = torch.arange(pixels, dtype=torch.float64)
    cover = torch.minimum(edges[1:, None], pixel + 1) - torch.maximum(edges[:-1, None], pixel)
    return (cover.clamp(min=0) * cells / pixels).float().to(device)


def upsampled(masks: Tensor, pixels: int) -> Tensor:
    """(M, h, w) to (M, pixels, pixels), bilinear, as two matrix products: no atomics backward."""
    weights = _bilinear(masks.shape[-1], pixels, masks.device)
    return weights @ masks @ weights.T


def averaged(masks: Tensor, cells: int) -> Tensor:
    """(M, H, W) to (M, cells, cells) by area."""
    weights = _average(masks.shape[-1], cells, masks.device)
    return weights @ masks @ weights.T


def training_loss(
    outputs: Outputs, batch: Batch, alignment: Tensor, *, positive_weight: float = 0.5
) -> dict[str, Tensor]:
    """Every loss by name, weighted, and their sum as ``total``.

    Args:
        outputs: Of the detector.
        batch: What was asked, and the truth.
        alignment: Loss of :class:`tiny_training.alignment.Alignment`.
        positive_weight: Of queries that are right, in the class loss; others weigh 0.5. Equal
            weights put the odds where the threshold of 0.5 asks for them.

    Waits for the device once, to match on the processor.
    """
    numbers = batch.target_numbers.flatten(0, 1)  # [N, T]
    wanted = batch.target_boxes.flatten(0, 1)  # [N, T, 4]
    cost = matching_cost(outputs, wanted)
    counts = (numbers > 0).sum(1)
    host_cost, host_counts = cost.cpu().numpy(), counts.cpu().numpy()
    matched = torch.from_numpy(match(host_cost, host_counts)).to(numbers.device)
    share = 1.0 / max(int(host_counts.sum()), 1)
    losses = _set_losses(outputs, numbers > 0, wanted, matched, (share, positive_weight))
    losses |= _mask_losses(outputs, batch, matched[-1], host_counts)
    losses["alignment"] = alignment
    losses = {name: WEIGHTS[name] * loss for name, loss in losses.items()}
    return {"total": torch.stack(list(losses.values())).sum(), **losses}


def _set_losses(
    outputs: Outputs, there: Tensor, wanted: Tensor, matched: Tensor, scales: tuple[float, float]
) -> dict[str, Tensor]:
    """Losses of classes, boxes and presence, summed over the layers.

    ``scales`` are one over the number of targets, and the weight of queries that are right.
    """
    share, positive_weight = scales
    queries = outputs.logits.shape[-1]
    present = there.any(1)  # [N]
    truth = F.one_hot(matched, queries + 1).sum(2)[..., :queries].to(outputs.logits.dtype)
    entropy = F.binary_cross_entropy_with_logits(outputs.logits, truth, reduction="none")
    probability = outputs.logits.sigmoid()
    missed = truth + probability - 2 * truth * probability  # 1 - probability of the truth
    weight = (positive_weight * truth + 0.5 * (1 - truth)) * missed**2
    # Of an absent concept the presence token alone speaks: queries are graded where it is there.
    classes = (weight * entropy * present[:, None]).sum() * share
    index = matched.clamp(max=queries - 1)[..., None].expand(-1, -1, -1, 4)
    boxes = outputs.boxes_xyxy.gather(2, index)  # [L, N, T, 4]
    l1 = ((boxes - wanted).abs().sum(-1) * there).sum() * share
    giou = ((1 - generalized_iou(boxes, wanted[None])) * there).sum() * share
    presence = F.binary_cross_entropy_with_logits(
        outputs.presence, present.to(outputs.presence.dtype).expand_as(outputs.presence)
    )
    layers = len(outputs.presence)
    return {"class": classes, "box_l1": l1, "box_giou": giou, "presence": presence * layers}


def _mask_losses(
    outputs: Outputs, batch: Batch, matched: Tensor, counts: npt.NDArray[np.int64]
) -> dict[str, Tensor]:
    """Losses of the matched masks of the last layer and of the semantic map.

    Cross-entropy on the mask's own grid against the share of each cell that is covered, which
    places edges between cells; dice on logits upsampled as post-processing does it.
    """
    device = outputs.masks.device
    prompts = batch.asked.shape[1]
    cells, pixels = outputs.masks.shape[-1], batch.instances.shape[-1]
    host_rows = np.repeat(np.arange(len(counts)), counts)
    host_slots = np.concatenate([np.arange(n) for n in counts]) if len(host_rows) else host_rows
    rows, slots = (torch.from_numpy(a).to(device) for a in (host_rows, host_slots))
    numbers = batch.target_numbers.flatten(0, 1)[rows, slots]
    truth = (batch.instances[rows // prompts] == numbers[:, None, None]).float()  # [M, H, W]
    covered = averaged(truth, cells)  # [M, h, w]
    logits = outputs.masks[rows, matched[rows, slots]]
    probability = upsampled(logits, pixels).sigmoid()
    overlap, total = (probability * truth).sum((1, 2)), probability.sum((1, 2)) + truth.sum((1, 2))
    union = torch.zeros_like(outputs.semantic).index_add(0, rows, covered).clamp(max=1)
    count = max(len(host_rows), 1)
    entropy = F.binary_cross_entropy_with_logits(logits, covered, reduction="none")
    return {
        "mask_bce": entropy.mean((1, 2)).sum() / count,
        "mask_dice": (1 - (2 * overlap + 1) / (total + 1)).sum() / count,
        "semantic": F.binary_cross_entropy_with_logits(outputs.semantic, union),
    }
