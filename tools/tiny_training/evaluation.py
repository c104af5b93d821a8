"""Figures of the tiny model on held-out scenes, from the training forward's answers.

They follow a training run and use its mix of prompts: three phrases and one prompt with boxes a
scene. The model card's figures come from ``samforge compare`` on a bundle, in the protocol of
:mod:`samforge.models.tiny.held_out`: two phrases and two prompts with boxes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from samforge.measure.accuracy import Match, accuracy_from_matches, match_masks
from tiny_training.data import TEXT_PROMPTS, make_batch
from tiny_training.forward import TrainingForward
from tiny_training.losses import upsampled

THRESHOLD = 0.5
"""Score from which a query is admitted, as in SAM 3's post-processing."""


@torch.no_grad()
def evaluate(forward: TrainingForward, scenes: int, *, chunk: int = 64) -> dict[str, float]:
    """Text F1, mask IoU, presence accuracy and box F1 on the first held-out scenes.

    Args:
        forward: Around the model to measure, in float32.
        scenes: How many scenes, rounded up to whole chunks.
        chunk: Scenes in one pass.
    """
    device = forward.phrase_ids.device
    chunk = min(chunk, scenes)
    phrases = forward.encode_phrases()
    text: list[Match] = []
    boxes: list[Match] = []
    for index in range(-(-scenes // chunk)):
        host = make_batch(index, chunk, split="held-out")
        batch = host.to(device)
        outputs = forward(phrases, batch.images, batch.asked, batch.boxes, batch.labels)
        scores = outputs.logits[-1].sigmoid() * outputs.presence[-1].sigmoid()[:, None]
        answers = _admitted_masks(outputs.masks, scores, batch.instances.shape[-1])
        numbers = host.target_numbers.numpy()
        instances = host.instances.numpy()
        prompts = numbers.shape[1]
        for row, predicted in enumerate(answers):
            scene, prompt = divmod(row, prompts)
            wanted = numbers[scene, prompt]
            true = instances[scene][None] == wanted[wanted > 0][:, None, None]
            (text if prompt < TEXT_PROMPTS else boxes).append(match_masks(predicted, true))
    by_text, by_boxes = accuracy_from_matches(text), accuracy_from_matches(boxes)
    return {
        "text_f1": by_text.f1,
        "text_iou": by_text.mean_iou,
        "presence": by_text.presence,
        "boxes_f1": by_boxes.f1,
        "boxes_iou": by_boxes.mean_iou,
    }


def _admitted_masks(masks: Tensor, scores: Tensor, pixels: int) -> list[npt.NDArray[np.bool_]]:
    """Masks (K, H, W) of the admitted queries, one array a prompt."""
    rows, queries = (scores > THRESHOLD).nonzero(as_tuple=True)
    full = upsampled(masks[rows, queries], pixels) > 0
    counts = torch.bincount(rows, minlength=len(scores)).tolist()
    return np.split(full.cpu().numpy(), np.cumsum(counts)[:-1])
