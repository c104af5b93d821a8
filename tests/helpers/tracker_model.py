"""transformers' whole video model at a thousandth of its size, and its tracker's parts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

IMAGE, SIDE = 112, 8
"""Pixels of the image, cells along the edge of the coarsest map."""
WIDTH, MEMORY = 128, 64
"""Of features and of memories: pointers are split into two."""


def video_model(small_config: Callable[..., Any]) -> Any:
    """Detector and tracker of transformers with random weights; the sizes are the smallest."""
    from transformers import Sam3VideoConfig, Sam3VideoModel

    detector = small_config(width=WIDTH).to_dict()
    tracker = {
        "vision_config": detector["vision_config"],
        "prompt_encoder_config": {"hidden_size": WIDTH, "image_size": IMAGE, "patch_size": 14},
        "mask_decoder_config": {
            "hidden_size": WIDTH,
            "mlp_dim": 64,
            "num_attention_heads": 4,
            "iou_head_hidden_dim": 32,
        },
        "memory_attention_hidden_size": WIDTH,
        "memory_attention_num_layers": 2,
        "memory_attention_feed_forward_hidden_size": 64,
        "memory_encoder_hidden_size": WIDTH,
        "memory_encoder_output_channels": MEMORY,
        "mask_downsampler_embed_dim": WIDTH,
        "memory_fuser_embed_dim": WIDTH,
        "memory_fuser_intermediate_dim": 64,
    }
    return Sam3VideoModel(_sized(Sam3VideoConfig(detector_config=detector, tracker_config=tracker)))


def save_video_model(model: Any, folder: Path) -> None:
    """Write a video model under the names of facebook/sam3.

    ``save_pretrained`` of transformers 5.23 does not: it writes ``tracker_model`` twice.
    """
    from safetensors.torch import save_file

    from samforge.models.sam3.byte_tokenizer import byte_tokenizer

    tracker = model.tracker_model
    with torch.no_grad():  # two tables of the same numbers, in every checkpoint
        tracker.prompt_encoder.shared_embedding.positional_embedding.copy_(
            tracker.shared_image_embedding.positional_embedding
        )
    model.config.save_pretrained(folder)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    byte_tokenizer(300).save(str(folder / "tokenizer.json"))


def stock_from_folder(folder: Path) -> Any:
    """transformers' own video model with the weights of a folder."""
    from safetensors.torch import load_file
    from transformers import Sam3VideoConfig, Sam3VideoModel

    model = Sam3VideoModel(_sized(Sam3VideoConfig.from_pretrained(folder)))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval().requires_grad_(False)


def _sized(config: Any) -> Any:
    """Set what transformers' configuration sets back to the sizes of 1008 pixels."""
    tracker = config.tracker_config
    tracker.memory_attention_rope_feat_sizes = [SIDE, SIDE]
    tracker.prompt_encoder_config.image_size = tracker.vision_config.image_size = IMAGE
    tracker.vision_config.backbone_feature_sizes = [[SIDE * scale] * 2 for scale in (4, 2, 1)]
    return config
