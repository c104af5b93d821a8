"""The part of DINOv3 and its interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

from torch import Tensor
from transformers import DINOv3ViTConfig

from samforge.core.axes import BATCH
from samforge.core.capabilities import BACKBONE
from samforge.core.session import TensorSpec
from samforge.models.dinov3.backbone import Backbone, stock_model
from samforge.models.dinov3.config import patch_px
from samforge.models.drawing import normal
from samforge.models.part import Input, PartDef

if TYPE_CHECKING:
    from samforge.models.dinov3.checkpoint import Dinov3Checkpoint

FAMILY = "dinov3"
"""Name of the architecture."""
Dinov3PartDef: TypeAlias = "PartDef[Dinov3Checkpoint, DINOv3ViTConfig]"


def _backbone(checkpoint: Dinov3Checkpoint, loaded: dict[str, Tensor]) -> Backbone:
    model = stock_model(checkpoint.config)
    loaded |= checkpoint.state()
    model.load_state_dict(loaded, assign=True)
    return Backbone(model, checkpoint.config, checkpoint.periods)


def _images(config: DINOv3ViTConfig) -> tuple[Input, ...]:
    size = config.image_size
    images = TensorSpec(name="images", dtype="float32", shape=(BATCH.name, 3, size, size))
    return (Input(spec=images, draw=normal),)


def _features(config: DINOv3ViTConfig) -> tuple[TensorSpec, ...]:
    side = config.image_size // patch_px(config)
    shape = (BATCH.name, config.hidden_size, side, side)
    return (TensorSpec(name="features", dtype="float32", shape=shape),)


DEFINITIONS: Mapping[str, Dinov3PartDef] = {
    BACKBONE: PartDef(
        name=BACKBONE, build=_backbone, inputs=_images, outputs=_features, axes=(BATCH,)
    )
}
"""Every part of the family by name."""
PARTS = tuple(DEFINITIONS)
"""The names alone."""
