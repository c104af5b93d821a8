"""The parts of SAM 3's tracker: checkpoint -> part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

from torch import Tensor, nn
from transformers.models.sam3_tracker_video.configuration_sam3_tracker_video import (
    Sam3TrackerVideoConfig,
)

from samforge.core.errors import CheckpointError, SettingError
from samforge.core.reference import META
from samforge.core.session import PartSpec
from samforge.models.part import Part, held_as_they_are
from samforge.models.sam3.checkpoint import Sam3Checkpoint, feature_sizes
from samforge.models.sam3.parts import FOLDED as DETECTOR_FOLDED
from samforge.models.sam3.parts import part_from_checkpoint, part_spec
from samforge.models.sam3.tracker import memory_encoder as memory
from samforge.models.sam3.tracker.mask_decoder import MaskDecoder, cell_positions
from samforge.models.sam3.tracker.mask_prompt import MaskPrompt
from samforge.models.sam3.tracker.memory_attention import MemoryAttention
from samforge.models.sam3.tracker.modules import (
    MODEL,
    NECK,
    Vectors,
    empty_neck,
    empty_tracker,
)
from samforge.models.sam3.tracker.neck import Neck, VisionWithTracker
from samforge.models.sam3.tracker.point_decoder import PointDecoder
from samforge.models.sam3.tracker.pointer import Pointer
from samforge.models.sam3.tracker.prompts import MaskInput, Points
from samforge.models.sam3.tracker.specs import LIMITS, MEMORY_SCALE, tracker_specs
from samforge.models.sam3.tracker.tracking_decoder import TrackingDecoder
from samforge.models.sam3.vision import Vision

FOLDED = {
    "cross_attn_image.v_proj": "joined with the output's projection, behind the sum over memories",
    "cross_attn_image.o_proj": "joined with the values' projection, behind the sum over memories",
    "memory_temporal_positional_encoding": "its rows in another order",
    "shared_image_embedding": "folded into the positions of cells, which are constants",
    "tracker_neck": "left out: the coarsest level, which the tracker does not read",
    "mask_decoder.conv_s": "run once for each image, in part vision_video",
    "mask_decoder.output_hypernetworks_mlps.0": "left out: tracking chooses among the others",
    **DETECTOR_FOLDED,
}
"""Why tensors of a module are not found in a part as they are, by what their names contain."""


def tracker_part_from_checkpoint(checkpoint: Sam3Checkpoint, name: str) -> Part:
    """Compose one part of the tracker and load its weights.

    Args:
        checkpoint: With its tracker. Only the weights of this part are read.
        name: One of :data:`TRACKER_PARTS`.

    Raises:
        SettingError: No such part, or the checkpoint was loaded without its tracker.
        CheckpointKeysError: The checkpoint lacks weights of the part or has them in another shape.
    """
    spec = tracker_part_spec(checkpoint, name)
    used = {axis for tensor in spec.inputs for axis in tensor.shape if isinstance(axis, str)}
    builder = _Builder(checkpoint=checkpoint, tracker=_tracker(checkpoint))
    module = BUILDS[name](builder).eval().requires_grad_(False)
    origins = held_as_they_are(module, builder.loaded)
    folded = dict(builder.folded)
    for stored in builder.loaded:
        if stored not in origins:
            folded[stored] = _reason(stored)
    return Part(
        spec=spec,
        module=module,
        axis_limits={axis: limits for axis, limits in LIMITS.items() if axis in used},
        origins=origins | builder.vision_origins(),
        folded=folded,
    )


def tracker_part_spec(checkpoint: Sam3Checkpoint, name: str) -> PartSpec:
    """Interface of a part of the tracker.

    Raises:
        SettingError: No such part, or the checkpoint was loaded without its tracker.
    """
    if name not in TRACKER_PARTS:
        raise SettingError(
            f"sam3's tracker has no part '{name}'. Its parts: {', '.join(TRACKER_PARTS)}."
        )
    config, reference = checkpoint.config, checkpoint.reference
    vision = part_spec(config, "vision", reference)
    return tracker_specs(config, _tracker(checkpoint), vision, reference)[name]


def _tracker(checkpoint: Sam3Checkpoint) -> Sam3TrackerVideoConfig:
    if checkpoint.tracker is None:
        raise SettingError(
            f"{checkpoint.name} was loaded without its tracker, so no part of it can be made. "
            "Load it with tracker=True."
        )
    return checkpoint.tracker


def _reason(stored: str) -> str:
    stem = next((stem for stem in FOLDED if stem in stored), None)
    if stem is None:
        raise CheckpointError(f"{stored} was loaded and is not in the part that asked for it.")
    return FOLDED[stem]


@dataclass(kw_only=True)
class _Builder:
    """Makes the stages that parts share, and keeps account of what was loaded."""

    checkpoint: Sam3Checkpoint
    tracker: Sam3TrackerVideoConfig
    loaded: dict[str, Tensor] = field(default_factory=dict)
    """Tensors that were read, by their names in the checkpoint."""
    folded: dict[str, str] = field(default_factory=dict)
    """What part ``vision`` says of its own."""
    vision: Part | None = None
    """Part ``vision``, where it is inside."""

    @cached_property
    def model(self) -> Any:
        return empty_tracker(self.tracker)

    @property
    def side(self) -> int:
        return feature_sizes(self.checkpoint.config)[-1]

    @property
    def meta(self) -> bool:
        return self.checkpoint.reference == META

    def load(self, *paths: str) -> list[Any]:
        """Modules of the tracker with their weights."""
        modules = {f"{MODEL}.{path}": self.model.get_submodule(path) for path in paths}
        self.loaded |= self.checkpoint.load(modules)
        return list(modules.values())

    def vectors(self, *names: str) -> Vectors:
        """Learned vectors of the tracker itself."""
        vectors = Vectors(self.model, *names)
        self.loaded |= self.checkpoint.load({MODEL: vectors})
        return vectors

    def decoder(self, *, first: int) -> MaskDecoder:
        decoder, shared = self.load("mask_decoder", "shared_image_embedding")
        position = cell_positions(shared.positional_embedding, self.side)
        return MaskDecoder(decoder, position, self.side, first=first)

    def pointer(self) -> Pointer:
        (projection,) = self.load("object_pointer_proj")
        return Pointer(projection, self.vectors("no_object_pointer"))

    def vision_origins(self) -> dict[str, str]:
        """Where the tensors of part ``vision`` went."""
        own = {} if self.vision is None else self.vision.origins
        return {stored: f"vision.{name}" for stored, name in own.items()}


def _vision_video(builder: _Builder) -> VisionWithTracker:
    vision = builder.vision = part_from_checkpoint(builder.checkpoint, "vision")
    builder.folded |= vision.folded
    neck = empty_neck(builder.checkpoint.config)
    builder.loaded |= builder.checkpoint.load({NECK: neck})
    convolutions = builder.load("mask_decoder.conv_s0", "mask_decoder.conv_s1")
    return VisionWithTracker(cast(Vision, vision.module), Neck(neck, *convolutions))


def _memory_attention(builder: _Builder) -> MemoryAttention:
    attention, time = builder.load(
        "memory_attention", "temporal_positional_encoding_projection_layer"
    )
    return MemoryAttention(
        attention,
        time,
        builder.vectors("memory_temporal_positional_encoding"),
        builder.tracker,
        builder.side,
    )


def _tracking_decoder(builder: _Builder) -> TrackingDecoder:
    points, mask = builder.load("prompt_encoder.not_a_point_embed", "prompt_encoder.no_mask_embed")
    return TrackingDecoder(builder.decoder(first=1), builder.pointer(), points, mask)


def _point_decoder(builder: _Builder) -> PointDecoder:
    (encoder,) = builder.load("prompt_encoder")
    return PointDecoder(
        builder.decoder(first=0),
        builder.pointer(),
        Points(encoder, builder.checkpoint.config.vision_config.image_size),
        MaskInput(encoder.mask_embed, encoder.no_mask_embed),
        builder.vectors("no_memory_embedding"),
        builder.tracker.mask_decoder_config,
    )


def _mask_prompt(builder: _Builder) -> MaskPrompt:
    embed, no_mask, not_a_point, downsample = builder.load(
        "prompt_encoder.mask_embed",
        "prompt_encoder.no_mask_embed",
        "prompt_encoder.not_a_point_embed",
        "mask_downsample",
    )
    return MaskPrompt(
        builder.decoder(first=0 if builder.meta else 1),
        builder.pointer(),
        MaskInput(embed, no_mask),
        downsample,
        not_a_point,
        feature_sizes(builder.checkpoint.config)[0],
    )


def _memory_encoder(builder: _Builder) -> memory.MemoryEncoder:
    steps = memory.META_STEPS if builder.meta else memory.TRANSFORMERS_STEPS
    return _encoder(builder, steps)


def _memory_encoder_text(builder: _Builder) -> memory.MemoryEncoder:
    return _encoder(builder, memory.TEXT_STEPS)


def _encoder(builder: _Builder, steps: tuple[str, ...]) -> memory.MemoryEncoder:
    (encoder,) = builder.load("memory_encoder")
    return memory.MemoryEncoder(
        encoder,
        builder.vectors("occlusion_spatial_embedding_parameter"),
        builder.tracker,
        steps=steps,
        sizes=(builder.checkpoint.config.vision_config.image_size, builder.side * MEMORY_SCALE),
    )


BUILDS: dict[str, Callable[[_Builder], nn.Module]] = {
    "vision_video": _vision_video,
    "memory_attention": _memory_attention,
    "tracking_decoder": _tracking_decoder,
    "point_decoder": _point_decoder,
    "mask_prompt": _mask_prompt,
    "memory_encoder": _memory_encoder,
    "memory_encoder_text": _memory_encoder_text,
}
"""What composes each part."""
TRACKER_PARTS = tuple(BUILDS)
"""Every part of the tracker. ``vision_video`` stands in the place of ``vision``; the two memory
encoders differ in how they enlarge masks, by who asks: points and masks, or text."""
