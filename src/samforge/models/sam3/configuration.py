"""A configuration of transformers beside what Meta's code fixes in its source."""

from __future__ import annotations

from typing import Any

from transformers import Sam3Config

from samforge.core.errors import SettingError
from samforge.core.reference import META

VIT = "vision_config.backbone_config"
META_EPSILON = 1e-5
"""Of the ViT's LayerNorms. Source: ``_create_vit_backbone`` in Meta's sam3/model_builder.py."""
FIXED: tuple[tuple[str, tuple[object, ...]], ...] = (
    # 1e-6 is transformers' default, and stands in facebook/sam3's own config.json.
    (f"{VIT}.layer_norm_eps", (META_EPSILON, 1e-6)),
    (f"{VIT}.hidden_act", ("gelu",)),
    (f"{VIT}.layer_scale_init_value", (None,)),
    (f"{VIT}.rope_parameters.rope_theta", (10000.0,)),
    ("text_config.hidden_act", ("gelu",)),
    ("text_config.layer_norm_eps", (1e-5,)),
    ("geometry_encoder_config.hidden_act", ("relu",)),
    ("detr_encoder_config.hidden_act", ("relu",)),
    ("detr_decoder_config.hidden_act", ("relu",)),
)
"""Settings that Meta's code has no choice of, and the values that do not contradict it."""


def config_for_reference(config: Sam3Config, reference: str, name: str) -> Sam3Config:
    """Give a configuration what Meta's code computes with, where that is the reference.

    Args:
        config: As the checkpoint brings it; changed in place.
        reference: ``meta`` or ``transformers``, which computes what the configuration says.
        name: Of the checkpoint, for messages.

    Raises:
        SettingError: A setting has a value that Meta's code knows nothing of.
    """
    if reference != META:
        return config
    for path, allowed in FIXED:
        value = _setting(config, path)
        if value not in allowed:
            raise SettingError(
                f"{name} has {path} = {value!r}, and Meta's code computes with {allowed[0]!r}: "
                "these weights belong to another computation. Build them with "
                "--reference transformers, which follows the configuration."
            )
    config.vision_config.backbone_config.layer_norm_eps = META_EPSILON
    return config


def _setting(config: Any, path: str) -> object:
    for name in path.split("."):
        config = config[name] if isinstance(config, dict) else getattr(config, name)
    return config
