"""The tensors that the tracker's parts take and give, and how an example of each is drawn."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import Sam3Config
from transformers.models.sam3_tracker_video.configuration_sam3_tracker_video import (
    Sam3TrackerVideoConfig,
)

from samforge.core.axes import BATCH, MEMORIES, OBJECTS, POINTERS, POINTS
from samforge.core.reference import META
from samforge.core.session import TensorSpec
from samforge.models import drawing
from samforge.models.part import Input
from samforge.models.sam3.checkpoint import feature_sizes

MEMORY_SCALE = 16
"""The memory encoder's masks are so many times finer than the tracker's features."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackerTensors:
    """Groups of tensors that the interfaces are made of."""

    maps: tuple[TensorSpec, ...]
    """What part ``vision`` gives of a batch for the tracker, behind its other outputs."""
    features: tuple[Input, ...]
    """The coarse map of one image."""
    fine: tuple[Input, ...]
    """Its two fine maps, narrowed for masks."""
    clicks: tuple[Input, ...]
    """Points, labels and earlier masks of objects."""
    candidates: tuple[TensorSpec, ...]
    """What clicks can mean: masks, IoUs and pointers, four of each."""
    given: tuple[Input, ...]
    """Masks of objects, as they are."""
    remembered: tuple[Input, ...]
    """Memories and pointers of objects."""
    conditioned: tuple[Input, ...]
    """The coarse map as each object's memory lets it be seen."""
    masks: tuple[Input, ...]
    """What memories are made of."""
    memory: TensorSpec
    """A frame's memory of each object."""
    logits: TensorSpec
    """A mask of each object."""
    iou: TensorSpec
    """How well it is thought to fit."""
    pointer: TensorSpec
    """A vector that stands for each object."""
    score: TensorSpec
    """Whether each object is in the picture, a logit."""


def tracker_tensors(
    detector: Sam3Config, tracker: Sam3TrackerVideoConfig, reference: str
) -> TrackerTensors:
    """Shapes of all tensors in one configuration.

    Args:
        detector: Gives the sizes, with the image size already set.
        tracker: Gives the widths.
        reference: Decides the size of masks that are given.
    """
    fine, middle, side = feature_sizes(detector)
    image = detector.vision_config.image_size
    width = tracker.mask_decoder_config.hidden_size
    given = side * MEMORY_SCALE if reference == META else image
    objects, memories, pointers = OBJECTS.name, MEMORIES.name, POINTERS.name
    clicks = (objects, POINTS.name)

    def maps(batch: int | str) -> tuple[TensorSpec, ...]:
        return (
            _float("high_res_0", batch, width // 8, fine, fine),
            _float("high_res_1", batch, width // 4, middle, middle),
            _float("tracker_features", batch, width, side, side),
        )

    *sharp, coarse = (Input(spec=one, draw=drawing.normal) for one in maps(1))
    cells = (side * side, tracker.memory_encoder_output_channels)
    logits = _float("mask_logits", objects, 1, fine, fine)
    score = _float("object_score", objects, 1)
    conditioned = _float("conditioned", objects, width, side, side)
    return TrackerTensors(
        maps=maps(BATCH.name),
        features=(coarse,),
        fine=tuple(sharp),
        clicks=(
            Input(spec=_float("points", *clicks, 2), draw=drawing.between(0, image)),
            Input(spec=_of("int64", "point_labels", *clicks), draw=drawing.integers(0, 4)),
            Input(spec=_float("mask_input", objects, 1, fine, fine), draw=drawing.wide),
            Input(spec=_of("bool", "has_mask", objects), draw=drawing.coin),
        ),
        candidates=(
            _float("mask_logits", objects, 4, fine, fine),
            _float("iou", objects, 4),
            _float("object_pointers", objects, 4, width),
        ),
        given=(Input(spec=_float("mask", objects, 1, given, given), draw=drawing.zero_or_one),),
        remembered=(
            Input(spec=_float("memory", objects, memories, *cells), draw=drawing.normal),
            # 0 is a conditioning frame.
            Input(
                spec=_of("int64", "memory_offsets", objects, memories), draw=drawing.integers(0, 7)
            ),
            Input(spec=_float("pointers", objects, pointers, width), draw=drawing.normal),
            Input(spec=_float("pointer_times", objects, pointers), draw=drawing.between(0, 2)),
        ),
        conditioned=(Input(spec=conditioned, draw=drawing.normal),),
        masks=(
            Input(spec=logits, draw=drawing.rectangles),
            Input(spec=score, draw=drawing.normal),
            Input(spec=_of("bool", "from_prompt", objects), draw=drawing.coin),
        ),
        memory=_float("memory", objects, *cells),
        logits=logits,
        iou=_float("iou", objects, 1),
        pointer=_float("object_pointer", objects, width),
        score=score,
    )


def _float(name: str, *shape: int | str) -> TensorSpec:
    return _of("float32", name, *shape)


def _of(dtype: str, name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)
