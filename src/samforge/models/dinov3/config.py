"""Architectures of DINOv3 ViTs: those known by name, and what their sizes must satisfy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import DINOv3ViTConfig

from samforge.core.errors import CheckpointError, SettingError
from samforge.core.native import native_errors
from samforge.models.config_values import check_values

BODY = "facebook/sam-3d-body-dinov3"
"""SAM 3D Body with this backbone on Hugging Face: one ``model.ckpt`` and no transformers config."""
BODY_PX = 512
"""Side of the person crop that SAM 3D Body gives its backbone."""

_SMALL = {"hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": 12}
_BASE = {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12}
_LARGE = {"hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 24}
_HUGE = {"hidden_size": 1280, "num_attention_heads": 20, "num_hidden_layers": 32}
_GATED = {"use_gated_mlp": True, "hidden_act": "silu"}

ARCHITECTURES: Mapping[str, Mapping[str, Any]] = {
    BODY: _HUGE | _GATED | {"intermediate_size": 5120, "image_size": BODY_PX},
    "facebook/dinov3-vits16-pretrain-lvd1689m": _SMALL | {"intermediate_size": 1536},
    "facebook/dinov3-vitb16-pretrain-lvd1689m": _BASE | {"intermediate_size": 3072},
    "facebook/dinov3-vitl16-pretrain-lvd1689m": _LARGE | {"intermediate_size": 4096},
    "facebook/dinov3-vith16plus-pretrain-lvd1689m": _HUGE | _GATED | {"intermediate_size": 5120},
    "dinov3-tiny": {
        **_GATED,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "image_size": 64,
    },
}
"""What differs from transformers' defaults in each architecture that random weights can be drawn
for. ``dinov3-tiny`` is samforge's own, for trials and tests: nobody trained it."""
REGISTERS = 4
"""Register tokens of every published DINOv3 ViT."""


def config_from_settings(settings: Mapping[str, Any], *, place: str) -> DINOv3ViTConfig:
    """Make transformers' configuration from a table, for example that of a ``config.json``.

    Args:
        settings: Fields and values.
        place: Where they were found, for the message.

    Raises:
        CheckpointError: They are no configuration of a DINOv3 ViT.
    """
    check_values(settings, place)
    # transformers' validation raises what its version likes.
    with native_errors(lambda error: _no_config(place, error)):
        config = DINOv3ViTConfig(**settings)
        check_values(config.to_dict(), place)
    heads = config.num_attention_heads
    if config.hidden_size % heads or config.hidden_size // heads % 4:
        raise CheckpointError(
            f"{place} has a width of {config.hidden_size} in {heads} heads. The rotary encoding "
            "wants heads of a multiple of 4 channels: this is no DINOv3 ViT."
        )
    return config


def _no_config(place: str, error: BaseException) -> CheckpointError:
    return CheckpointError(
        f"{place} is no configuration of a DINOv3 ViT ({error}). Download it again."
    )


def named_config(name: str) -> DINOv3ViTConfig:
    """Configuration of one of :data:`ARCHITECTURES`."""
    settings = {"num_register_tokens": REGISTERS, **ARCHITECTURES[name]}
    return config_from_settings(settings, place=name)


def with_image_size(config: DINOv3ViTConfig, size: int | None) -> DINOv3ViTConfig:
    """Set the image size before anything is constructed: rotary tables are built from it.

    The stock model takes any size and silently drops the pixels that fill no patch.

    Args:
        config: Changed in place.
        size: Side in pixels; None keeps the configuration's own.

    Raises:
        SettingError: The size is no positive multiple of the patch.
        CheckpointError: The configuration has patches that are not square.
    """
    patch = patch_px(config)
    size = _square(config.image_size, "images") if size is None else size
    if size < patch or size % patch:
        below = max(patch, size // patch * patch)
        raise SettingError(
            f"image size {size} is no multiple of {patch} pixels, the side of a patch. "
            f"The nearest sizes are {below} and {below + patch}."
        )
    config.image_size = size
    return config


def patch_px(config: DINOv3ViTConfig) -> int:
    """Side of a patch in pixels.

    Raises:
        CheckpointError: Patches are not square.
    """
    return _square(config.patch_size, "patches")


def _square(value: int | list[int] | tuple[int, ...], what: str) -> int:
    if isinstance(value, int):
        return value
    if len(set(value)) != 1:
        raise CheckpointError(
            f"The configuration has {what} of {tuple(value)} pixels. samforge takes square ones."
        )
    return int(value[0])
