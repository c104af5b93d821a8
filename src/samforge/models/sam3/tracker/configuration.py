"""The tracker's configuration: sizes that follow the image, and what Meta's code fixes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

from transformers import Sam3Config
from transformers.models.sam3_tracker_video.configuration_sam3_tracker_video import (
    Sam3TrackerVideoConfig,
)

from samforge.core.errors import SettingError
from samforge.core.reference import META
from samforge.models.sam3.checkpoint import feature_sizes

DECODER = "mask_decoder_config"
FIXED: tuple[tuple[str, object], ...] = (
    ("num_maskmem", 7),
    ("sigmoid_scale_for_mem_enc", 20.0),
    ("sigmoid_bias_for_mem_enc", -10.0),
    ("memory_attention_feed_forward_hidden_act", "relu"),
    ("mask_downsampler_hidden_act", "gelu"),
    ("memory_fuser_hidden_act", "gelu"),
    ("rope_parameters.rope_theta", 10000.0),
    ("prompt_encoder_config.hidden_act", "gelu"),
    ("prompt_encoder_config.layer_norm_eps", 1e-6),
    (f"{DECODER}.dynamic_multimask_via_stability", True),
    (f"{DECODER}.dynamic_multimask_stability_delta", 0.05),
    (f"{DECODER}.dynamic_multimask_stability_thresh", 0.98),
)
"""Settings that Meta's code has no choice of. Source: ``build_tracker`` and
``_create_tracker_transformer`` in Meta's sam3/model_builder.py, by way of its numbers."""
BUILT_FOR: tuple[tuple[str, object], ...] = (
    # One head, so that values may be projected behind the sum over memories.
    ("memory_attention_num_attention_heads", 1),
    ("memory_attention_downsample_rate", 1),
    ("enable_temporal_pos_encoding_for_object_pointers", True),
    ("enable_occlusion_spatial_embedding", True),
    ("mask_downsampler_total_stride", 16),
    (f"{DECODER}.num_multimask_outputs", 3),
)
"""Settings without which the parts would compute something else, whatever the reference."""


def tracker_config(
    settings: Mapping[str, Any], detector: Sam3Config, reference: str, name: str
) -> Sam3TrackerVideoConfig:
    """Read the tracker's configuration.

    Args:
        settings: ``tracker_config`` of a checkpoint; empty for that of facebook/sam3.
        detector: With the image size already set: the tracker sees the same tokens.
        reference: ``meta`` or ``transformers``, which computes what the configuration says.
        name: Of the checkpoint, for messages.

    Raises:
        SettingError: A setting has a value that Meta's code, or the parts, know nothing of.
    """
    config = Sam3TrackerVideoConfig(**settings)
    for path, wanted in BUILT_FOR:
        if _setting(config, path) != wanted:
            raise SettingError(
                f"{name} has {path} = {_setting(config, path)!r} in its tracker, and samforge's "
                f"tracker is written for {wanted!r}. Load it without the tracker."
            )
    for path, wanted in FIXED if reference == META else ():
        if _setting(config, path) != wanted:
            raise SettingError(
                f"{name} has {path} = {_setting(config, path)!r} in its tracker, and Meta's code "
                f"computes with {wanted!r}: these weights belong to another computation. Load "
                "them with the reference transformers, which follows the configuration."
            )
    return _with_sizes(config, detector)


def _with_sizes(config: Sam3TrackerVideoConfig, detector: Sam3Config) -> Sam3TrackerVideoConfig:
    """Set what is derived from the image size, for whoever reads the configuration."""
    prompts = config.prompt_encoder_config
    sides = feature_sizes(detector)
    prompts.image_size = detector.vision_config.image_size
    prompts.patch_size = prompts.image_size // sides[-1]
    config.memory_attention_rope_feat_sizes = [sides[-1], sides[-1]]
    return config


def _setting(config: object, path: str) -> object:
    def inside(holder: Any, key: str) -> Any:
        return holder[key] if isinstance(holder, dict) else getattr(holder, key)

    return reduce(inside, path.split("."), config)
