"""transformers' own modules of SAM 3, made without weights, by part."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import Sam3Config
from transformers.models.sam3.modeling_sam3 import (
    Sam3DetrDecoder,
    Sam3DetrEncoder,
    Sam3DotProductScoring,
    Sam3GeometryEncoder,
    Sam3MaskDecoder,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectorModules:
    """What the detector is composed of; field names are prefixes of the checkpoint's keys."""

    geometry_encoder: Sam3GeometryEncoder
    """Exemplar boxes -> prompt tokens."""
    detr_encoder: Sam3DetrEncoder
    """Image tokens attend to the prompt."""
    detr_decoder: Sam3DetrDecoder
    """Queries -> boxes and presence."""
    dot_product_scoring: Sam3DotProductScoring
    """Queries and prompt -> logits."""
    mask_decoder: Sam3MaskDecoder
    """Queries and features -> masks."""

    def named(self) -> dict[str, nn.Module]:
        """The modules by their prefix in a checkpoint."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def geometry_encoder(config: Sam3Config) -> Sam3GeometryEncoder:
    """Make transformers' geometry encoder without weights (on the meta device)."""
    with torch.device("meta"):
        return Sam3GeometryEncoder(config.geometry_encoder_config)


def detector_modules(config: Sam3Config) -> DetectorModules:
    """Make transformers' detector without weights (on the meta device)."""
    with torch.device("meta"):
        return DetectorModules(
            geometry_encoder=geometry_encoder(config),
            detr_encoder=Sam3DetrEncoder(config.detr_encoder_config),
            detr_decoder=Sam3DetrDecoder(config.detr_decoder_config),
            dot_product_scoring=Sam3DotProductScoring(config),
            mask_decoder=Sam3MaskDecoder(config.mask_decoder_config),
        )
