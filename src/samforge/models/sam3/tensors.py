"""The tensors that the parts of SAM 3 take and give, and how an example of each input is drawn."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import Sam3Config
from transformers.models.sam3_tracker_video.configuration_sam3_tracker_video import (
    Sam3TrackerVideoConfig,
)

from samforge.core.axes import BATCH, BOXES, PROMPTS
from samforge.core.errors import SettingError
from samforge.core.reference import META
from samforge.core.session import TensorSpec
from samforge.models.drawing import box_signs, boxes_in_image, normal, token_mask, token_rows
from samforge.models.part import Input
from samforge.models.sam3.checkpoint import feature_sizes
from samforge.models.sam3.tracker.tensors import TrackerTensors, tracker_tensors


@dataclass(frozen=True, kw_only=True, slots=True)
class Sam3Tensors:
    """Groups of tensors that the interfaces are made of."""

    images: tuple[Input, ...]
    """Normalized pictures."""
    input_ids: tuple[Input, ...]
    """Phrases as token ids."""
    features: tuple[Input, ...]
    """What part ``vision`` makes of images, finest first."""
    seen: tuple[Input, ...]
    """The same, with the class token where the reference is Meta's."""
    text: tuple[Input, ...]
    """What part ``text`` makes of phrases."""
    exemplars: tuple[Input, ...]
    """Boxes with their signs."""
    results: tuple[TensorSpec, ...]
    """What is found."""
    tracker: TrackerTensors | None
    """Of the tracker's parts; None where the model was loaded without it."""

    def of_tracker(self) -> TrackerTensors:
        """The tensors of the tracker's parts.

        Raises:
            SettingError: The model was loaded without its tracker.
        """
        if self.tracker is None:
            raise SettingError(
                "This model was loaded without its tracker, so it has no part of it. Load it with "
                "tracker=True."
            )
        return self.tracker


def sam3_tensors(
    config: Sam3Config, reference: str, tracker: Sam3TrackerVideoConfig | None = None
) -> Sam3Tensors:
    """Shapes of all tensors in one configuration.

    Args:
        config: With the image size already set.
        reference: Whose computation the parts are: ``meta`` or ``transformers``.
        tracker: Of a model that was loaded with it.
    """
    size, cells = config.vision_config.image_size, feature_sizes(config)
    width = config.detr_encoder_config.hidden_size
    context = config.text_config.max_position_embeddings
    batch, prompts, boxes = BATCH.name, PROMPTS.name, BOXES.name
    found = (batch, prompts, config.detr_decoder_config.num_queries)
    features = tuple(
        _normal(f"fpn_{level}", batch, width, side, side) for level, side in enumerate(cells)
    )
    token = (_normal("class_token", batch, 1, width),) if reference == META else ()
    ids = TensorSpec(name="input_ids", dtype="int64", shape=(prompts, context))
    mask = TensorSpec(name="text_mask", dtype="bool", shape=(prompts, context))
    signs = TensorSpec(name="box_labels", dtype="int64", shape=(batch, prompts, boxes))
    return Sam3Tensors(
        images=(_normal("images", batch, 3, size, size),),
        input_ids=(Input(spec=ids, draw=token_rows),),
        features=features,
        seen=features + token,
        text=(
            _normal("text_features", prompts, context, width),
            Input(spec=mask, draw=token_mask),
        ),
        exemplars=(
            Input(spec=_float("boxes_cxcywh", batch, prompts, boxes, 4), draw=boxes_in_image),
            Input(spec=signs, draw=box_signs),
        ),
        results=(
            _float("pred_logits", *found),
            _float("pred_boxes", *found, 4),
            _float("pred_masks", *found, cells[0], cells[0]),
            _float("presence_logit", batch, prompts),
        ),
        tracker=None if tracker is None else tracker_tensors(config, tracker, reference),
    )


def specs_of(inputs: tuple[Input, ...]) -> tuple[TensorSpec, ...]:
    """Names, types and shapes alone: what one part gives, another takes."""
    return tuple(one.spec for one in inputs)


def _normal(name: str, *shape: int | str) -> Input:
    return Input(spec=_float(name, *shape), draw=normal)


def _float(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=shape)
