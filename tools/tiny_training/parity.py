"""Is the training forward what Meta's code computes? Compared on real scenes, in float32.

The stock model computes it where it is given boxes: a phrase alone gets one box that is padding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from samforge.models.sam3.geometry import PADDING
from tiny_training.data import TEXT_PROMPTS, Batch, make_batch
from tiny_training.forward import Outputs, TrainingForward

TOLERANCE = 2e-4
"""Largest difference of any last-layer output; two orders of addition differ by some 1e-5."""


def stock_inputs(batch: Batch, ids: Tensor, mask: Tensor, prompt: int) -> dict[str, Tensor]:
    """What the stock model wants for one prompt of each image, its text padded to 32 tokens."""
    asked = batch.asked[:, prompt]
    padding = (0, 32 - ids.shape[1])
    inputs = {
        "pixel_values": batch.images.permute(0, 3, 1, 2).float() / 127.5 - 1,
        "input_ids": torch.nn.functional.pad(ids, padding)[asked],
        "attention_mask": torch.nn.functional.pad(mask, padding)[asked].long(),
    }
    if prompt >= TEXT_PROMPTS:
        inputs["input_boxes"] = batch.boxes[:, prompt - TEXT_PROMPTS]
        inputs["input_boxes_labels"] = batch.labels[:, prompt - TEXT_PROMPTS]
    else:
        inputs["input_boxes"] = torch.full((len(asked), 1, 4), 0.5)
        inputs["input_boxes_labels"] = torch.full((len(asked), 1), PADDING)
    return inputs


def largest_differences(
    outputs: Outputs, stock: Any, prompt: int, prompts: int
) -> dict[str, float]:
    """Largest absolute difference of each output for one prompt of each image."""
    pairs = {
        "logits": (outputs.logits[-1], stock.pred_logits),
        "boxes": (outputs.boxes_xyxy[-1], stock.pred_boxes),
        "presence": (outputs.presence[-1], stock.presence_logits.squeeze(-1)),
        "masks": (outputs.masks, stock.pred_masks),
        "semantic": (outputs.semantic, stock.semantic_seg.squeeze(1)),
    }
    return {
        name: float((ours[prompt::prompts] - theirs).abs().max())
        for name, (ours, theirs) in pairs.items()
    }


@torch.no_grad()
def stirred(model: Any) -> Any:
    """The model with noise on every weight, in place.

    Fresh weights are so small that every answer is nearly zero, and nearly zero always agrees.
    """
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.06)
    return model


@torch.no_grad()
def check(model: Any, ids: Tensor, mask: Tensor, *, images: int = 3) -> None:
    """Print the differences and stop when one is too large.

    Args:
        model: A stock model; it needs torchvision to pool boxes.
        ids: (V, S) token ids of every phrase.
        mask: (V, S) True where a token is no padding.
        images: Scenes to compare on.
    """
    model = stirred(model).eval()
    batch = make_batch(0, images, split="train")
    forward = TrainingForward(model, ids, mask)
    outputs = forward(
        forward.encode_phrases(), batch.images, batch.asked, batch.boxes, batch.labels
    )
    prompts = batch.asked.shape[1]
    for prompt in range(prompts):
        stock = model(**stock_inputs(batch, ids, mask, prompt))
        differences = largest_differences(outputs, stock, prompt, prompts)
        print(f"prompt {prompt}: " + ", ".join(f"{k} {v:.1e}" for k, v in differences.items()))
        if max(differences.values()) > TOLERANCE:
            raise SystemExit(f"The training forward differs from the stock model: {differences}")
