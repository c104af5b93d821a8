"""The part of DINOv3 and its interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeAlias

from torch import Tensor
from transformers import DINOv3ViTConfig

from samforge.core.axes import BATCH
from samforge.core.capabilities import BACKBONE
from samforge.core.session import TensorSpec
from samforge.models.dinov3.backbone import Backbone, stock_model
from samforge.models.dinov3.config import patch_px
from samforge.models.drawing import normal
from samforge.models.part import Input, PartDef

FAMILY = "dinov3"
"""Name of the architecture."""
Dinov3PartDef: TypeAlias = "PartDef[Weights, DINOv3ViTConfig]"


class Weights(Protocol):
    """What the part is made of: a checkpoint of this family."""

    @property
    def config(self) -> DINOv3ViTConfig:
        """Of the architecture."""
        ...

    @property
    def periods(self) -> Tensor | None:
        """Of the rotary encoding, where the checkpoint has its own."""
        ...

    def state(self) -> dict[str, Tensor]:
        """The tensors by the architecture's names."""
        ...


def _backbone(checkpoint: Weights, loaded: dict[str, Tensor]) -> Backbone:
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
