"""The parts of SAM 3's tracker: what composes them, and their interfaces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from transformers.models.sam3_tracker_video.configuration_sam3_tracker_video import (
    Sam3TrackerVideoConfig,
)

from samforge.core import capabilities
from samforge.core.axes import MEMORIES, OBJECTS, POINTERS, POINTS, Axis
from samforge.core.errors import SettingError
from samforge.core.reference import META
from samforge.core.session import TensorSpec
from samforge.models.part import Input, PartDef
from samforge.models.sam3.checkpoint import Sam3Checkpoint, feature_sizes
from samforge.models.sam3.tensors import Sam3Tensors, specs_of
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
from samforge.models.sam3.tracker.tensors import MEMORY_SCALE, TrackerTensors
from samforge.models.sam3.tracker.tracking_decoder import TrackingDecoder
from samforge.models.sam3.vision import Vision

FOLDED = {
    "cross_attn_image.v_proj": "joined with the output's projection, behind the sum over memories",
    "cross_attn_image.o_proj": "joined with the values' projection, behind the sum over memories",
    "memory_temporal_positional_encoding": "its rows in another order",
    "shared_image_embedding": "folded into the positions of cells, which are constants",
    "tracker_neck.": "left out: the coarsest level, which the tracker does not read",
    "mask_decoder.conv_s": "run once for each image, in part vision",
    "mask_decoder.output_hypernetworks_mlps.0": "left out: tracking chooses among the others",
}
"""Why tensors of a module are not found in a part as they are, by what their names contain."""


def tracker_of(checkpoint: Sam3Checkpoint) -> Sam3TrackerVideoConfig:
    """Configuration of the tracker.

    Raises:
        SettingError: The checkpoint was loaded without it.
    """
    if checkpoint.tracker is None:
        raise SettingError(
            f"{checkpoint.name} was loaded without its tracker, so no part of it can be made. "
            "Load it with tracker=True."
        )
    return checkpoint.tracker


def vision_with_tracker(
    vision: Vision, checkpoint: Sam3Checkpoint, loaded: dict[str, Tensor]
) -> VisionWithTracker:
    """Put the tracker's neck over the ViT of part ``vision``.

    Args:
        vision: The part as it is without a tracker.
        checkpoint: With its tracker.
        loaded: Takes the tensors that are read, by their names in the checkpoint.
    """
    builder = _Builder(checkpoint=checkpoint, loaded=loaded)
    neck = empty_neck(checkpoint.config)
    loaded |= checkpoint.load({NECK: neck})
    return VisionWithTracker(
        vision, Neck(neck, *builder.load("mask_decoder.conv_s0", "mask_decoder.conv_s1"))
    )


@dataclass(frozen=True, kw_only=True)
class _Builder:
    """Makes the stages that parts share, and keeps account of what was loaded."""

    checkpoint: Sam3Checkpoint
    loaded: dict[str, Tensor]
    """Tensors that were read, by their names in the checkpoint."""

    @cached_property
    def tracker(self) -> Sam3TrackerVideoConfig:
        return tracker_of(self.checkpoint)

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
        self.loaded.update(self.checkpoint.load(modules))
        return list(modules.values())

    def vectors(self, *names: str) -> Vectors:
        """Learned vectors of the tracker itself."""
        vectors = Vectors(self.model, *names)
        self.loaded.update(self.checkpoint.load({MODEL: vectors}))
        return vectors

    def decoder(self, *, first: int) -> MaskDecoder:
        decoder, shared = self.load("mask_decoder", "shared_image_embedding")
        position = cell_positions(shared.positional_embedding, self.side)
        return MaskDecoder(decoder, position, self.side, first=first)

    def pointer(self) -> Pointer:
        (projection,) = self.load("object_pointer_proj")
        return Pointer(projection, self.vectors("no_object_pointer"))


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


def _definition(  # the columns of the table below
    name: str,
    make: Callable[[_Builder], nn.Module],
    inputs: Callable[[TrackerTensors], tuple[Input, ...]],
    outputs: Callable[[TrackerTensors], tuple[TensorSpec, ...]],
    axes: tuple[Axis, ...],
    serves: capabilities.Capability = capabilities.TRACK,
) -> PartDef[Sam3Checkpoint, Sam3Tensors]:
    """A part of the tracker: engines and lowerings leave all of them in half.

    At real size nine tenths of what they multiply is attention over memories, which stays float.
    """
    return PartDef(
        name=name,
        build=lambda checkpoint, loaded: make(_Builder(checkpoint=checkpoint, loaded=loaded)),
        inputs=lambda tensors: inputs(tensors.of_tracker()),
        outputs=lambda tensors: outputs(tensors.of_tracker()),
        axes=axes,
        serves=serves,
        stays_half=True,
        half_in_engines=True,
    )


DEFINITIONS: tuple[PartDef[Sam3Checkpoint, Sam3Tensors], ...] = (
    _definition(
        capabilities.POINT_DECODER,
        _point_decoder,
        lambda own: own.features + own.fine + own.clicks,
        lambda own: (*own.candidates, own.score),
        (OBJECTS, POINTS),
        capabilities.POINTS,
    ),
    _definition(
        capabilities.MASK_PROMPT,
        _mask_prompt,
        lambda own: own.features + own.fine + own.given,
        lambda own: (own.pointer, own.score),
        (OBJECTS,),
    ),
    _definition(
        capabilities.MEMORY_ATTENTION,
        _memory_attention,
        lambda own: own.features + own.remembered,
        lambda own: specs_of(own.conditioned),
        (OBJECTS, MEMORIES, POINTERS),
    ),
    _definition(
        capabilities.TRACKING_DECODER,
        _tracking_decoder,
        lambda own: own.conditioned + own.fine,
        lambda own: (own.logits, own.iou, own.pointer, own.score),
        (OBJECTS,),
    ),
    *(
        _definition(
            name, make, lambda own: own.features + own.masks, lambda own: (own.memory,), (OBJECTS,)
        )
        for name, make in (
            (capabilities.MEMORY_ENCODER, _memory_encoder),
            (capabilities.MEMORY_ENCODER_TEXT, _memory_encoder_text),
        )
    ),
)
"""Every part of the tracker but ``vision``, which the detector shares. The two memory encoders
differ in how they enlarge masks, by who asks: points and masks, or text."""
