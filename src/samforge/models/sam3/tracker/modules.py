"""transformers' own modules of the tracker, made without weights, by their name in a checkpoint."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import Sam3Config
from transformers.models.sam3.modeling_sam3 import Sam3VisionNeck
from transformers.models.sam3_tracker_video.configuration_sam3_tracker_video import (
    Sam3TrackerVideoConfig,
)
from transformers.models.sam3_tracker_video.modeling_sam3_tracker_video import (
    Sam3TrackerVideoModel,
)

MODEL = "tracker_model"
"""Prefix of the tracker in transformers' video checkpoints."""
NECK = "tracker_neck"
"""Prefix of its neck, which reads the detector's ViT."""


class Vectors(nn.Module):
    """Learned vectors that stand in the tracker itself, outside of its modules."""

    def __init__(self, model: nn.Module, *names: str) -> None:
        super().__init__()
        for name in names:
            self.register_parameter(name, getattr(model, name))

    def vector(self, name: str) -> Tensor:
        """One of them, as it stands in the checkpoint."""
        return self.get_parameter(name)


def empty_tracker(config: Sam3TrackerVideoConfig) -> Sam3TrackerVideoModel:
    """Make transformers' tracker without weights (on the meta device) and without a ViT."""
    with torch.device("meta"):
        return Sam3TrackerVideoModel(config, remove_vision_encoder=True)


def empty_neck(config: Sam3Config) -> Sam3VisionNeck:
    """Make the tracker's neck without weights (on the meta device)."""
    with torch.device("meta"):
        return Sam3VisionNeck(config.vision_config)


def tracker_shapes(
    tracker: Sam3TrackerVideoConfig, detector: Sam3Config
) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the tracker and its neck."""
    holders: dict[str, nn.Module] = {MODEL: empty_tracker(tracker), NECK: empty_neck(detector)}
    return {
        f"{prefix}.{name}": tuple(tensor.shape)
        for prefix, module in holders.items()
        for name, tensor in module.state_dict().items()
    }
