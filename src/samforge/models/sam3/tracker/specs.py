"""Interfaces of the tracker's parts, and random inputs for them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from transformers import Sam3Config
from transformers.models.sam3_tracker_video.configuration_sam3_tracker_video import (
    Sam3TrackerVideoConfig,
)

from samforge.core import axes
from samforge.core.reference import META
from samforge.core.session import PartSpec, TensorSpec
from samforge.models.sam3.checkpoint import feature_sizes
from samforge.models.sam3.tracker.memory_encoder import MOST_OBJECTS

LIMITS: dict[str, tuple[int, int | None]] = {
    axes.BATCH.name: (1, None),
    **{one.name: (1, one.engine) for one in (axes.MEMORIES, axes.POINTERS, axes.POINTS)},
    axes.OBJECTS.name: (1, MOST_OBJECTS),
}
"""Smallest and largest size of each dynamic axis."""
MEMORY_SCALE = 16
"""The memory encoder's masks are so many times finer than the tracker's features."""


def tracker_specs(
    detector: Sam3Config,
    tracker: Sam3TrackerVideoConfig,
    vision: PartSpec,
    reference: str,
) -> dict[str, PartSpec]:
    """Interfaces by the name of the part.

    Args:
        detector: Gives the sizes.
        tracker: Gives the widths.
        vision: Interface of part ``vision``, which ``vision_video`` extends.
        reference: Decides the size of masks that are given.
    """
    fine, _, side = feature_sizes(detector)
    width = tracker.mask_decoder_config.hidden_size
    features = _float("tracker_features", 1, width, side, side)
    maps = _high_res(detector, tracker, 1)
    mask_side = side * MEMORY_SCALE if reference == META else detector.vision_config.image_size
    low_res = ("objects", 1, fine, fine)
    remembered = ("objects", "memories", side * side, tracker.memory_encoder_output_channels)
    score = _float("object_score", "objects", 1)
    pointer = _float("object_pointer", "objects", width)
    conditioned = _float("conditioned", "objects", width, side, side)
    logits = _float("mask_logits", *low_res)
    encoder = (
        (features, logits, score, _other("from_prompt", "bool", "objects")),
        (_float("memory", "objects", *remembered[2:]),),
    )
    interfaces: dict[str, tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]] = {
        "vision_video": (
            vision.inputs,
            (
                *vision.outputs,
                *_high_res(detector, tracker, "batch"),
                _float("tracker_features", "batch", width, side, side),
            ),
        ),
        "memory_attention": (
            (
                features,
                _float("memory", *remembered),
                _other("memory_offsets", "int64", "objects", "memories"),
                _float("pointers", "objects", "pointers", width),
                _float("pointer_times", "objects", "pointers"),
            ),
            (conditioned,),
        ),
        "tracking_decoder": (
            (conditioned, *maps),
            (logits, _float("iou", "objects", 1), pointer, score),
        ),
        "point_decoder": (
            (
                features,
                *maps,
                _float("points", "objects", "points", 2),
                _other("point_labels", "int64", "objects", "points"),
                _float("mask_input", *low_res),
                _other("has_mask", "bool", "objects"),
            ),
            (
                _float("mask_logits", "objects", 4, fine, fine),
                _float("iou", "objects", 4),
                _float("object_pointers", "objects", 4, width),
                score,
            ),
        ),
        "mask_prompt": (
            (features, *maps, _float("mask", "objects", 1, mask_side, mask_side)),
            (pointer, score),
        ),
        "memory_encoder": encoder,
        "memory_encoder_text": encoder,
    }
    return {
        name: PartSpec(name=name, inputs=inputs, outputs=outputs)
        for name, (inputs, outputs) in interfaces.items()
    }


def tracker_inputs(
    spec: PartSpec, sizes: Mapping[str, int], *, image_size: int, seed: int = 0
) -> dict[str, Tensor]:
    """Make random inputs of the right kind: normal features, points in the image, known labels.

    Args:
        spec: Interface of the part.
        sizes: Size of every dynamic axis.
        image_size: Side of the image in pixels.
        seed: The same seed gives the same tensors.

    Returns:
        One tensor for each input, by name.
    """
    rng = np.random.default_rng(seed)
    return {tensor.name: _example(tensor, sizes, image_size, rng) for tensor in spec.inputs}


def _example(
    tensor: TensorSpec, sizes: Mapping[str, int], image_size: int, rng: np.random.Generator
) -> Tensor:
    shape = tuple(sizes[axis] if isinstance(axis, str) else axis for axis in tensor.shape)
    if tensor.name == "memory_offsets":  # 0 is a conditioning frame
        return torch.from_numpy(rng.integers(0, 7, shape))
    if tensor.name == "pointer_times":
        return torch.from_numpy(rng.uniform(0, 2, shape).astype(np.float32))
    if tensor.name == "points":
        return torch.from_numpy(rng.uniform(0, image_size, shape).astype(np.float32))
    if tensor.name == "point_labels":
        return torch.from_numpy(rng.integers(0, 4, shape))
    if tensor.name == "mask":
        return torch.from_numpy((rng.random(shape) < 0.5).astype(np.float32))
    if tensor.dtype == "bool":
        return torch.from_numpy(rng.random(shape) < 0.5)
    scale = 4.0 if tensor.name in {"mask_logits", "mask_input"} else 1.0
    return torch.from_numpy(scale * rng.standard_normal(shape, dtype=np.float32))


def _high_res(
    detector: Sam3Config, tracker: Sam3TrackerVideoConfig, batch: int | str
) -> tuple[TensorSpec, TensorSpec]:
    fine, middle, _ = feature_sizes(detector)
    width = tracker.mask_decoder_config.hidden_size
    return (
        _float("high_res_0", batch, width // 8, fine, fine),
        _float("high_res_1", batch, width // 4, middle, middle),
    )


def _float(name: str, *shape: int | str) -> TensorSpec:
    return _other(name, "float32", *shape)


def _other(name: str, dtype: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)
