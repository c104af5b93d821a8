"""The parts of SAM 3 and their interfaces: checkpoint -> part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from torch import Tensor
from transformers import Sam3Config
from transformers.models.sam3_tracker_video.configuration_sam3_tracker_video import (
    Sam3TrackerVideoConfig,
)

from samforge.core import capabilities
from samforge.core.axes import BATCH, BOXES, PROMPTS
from samforge.core.capabilities import DETECTOR, DETECTOR_WITH_BOXES, TEXT_ENCODER, VISION
from samforge.core.errors import CheckpointError
from samforge.core.reference import META
from samforge.core.session import PartSpec
from samforge.models.part import Input, Part, PartDef, definition_of, held_as_they_are
from samforge.models.sam3.checkpoint import Sam3Checkpoint
from samforge.models.sam3.class_token import ClassToken
from samforge.models.sam3.detector import Detector, DetectorWithBoxes, DetectorWithClassToken
from samforge.models.sam3.grounding import Grounding
from samforge.models.sam3.modules import detector_modules, geometry_encoder
from samforge.models.sam3.tensors import Sam3Tensors, sam3_tensors, specs_of
from samforge.models.sam3.text import Text, text_encoder
from samforge.models.sam3.tracker import parts as tracker_parts
from samforge.models.sam3.tracker.neck import VisionWithTracker
from samforge.models.sam3.vision import Vision, vision_encoder

FAMILY = "sam3"
"""Name of the architecture."""
Sam3PartDef: TypeAlias = PartDef[Sam3Checkpoint, Sam3Tensors]
FOLDED = {
    **tracker_parts.FOLDED,
    "geometry_encoder.": "folded into the class token, or left out where no boxes are asked",
    "vision_encoder.neck.": "left out: the coarsest feature map, which the detector does not read",
    "mask_decoder.pixel_decoder.": "left out: a stage for the coarsest feature map",
    "mask_decoder.semantic_projection.": "left out: a head that detection does not read",
    "text_encoder.text_projection.": "left out: CLIP's own projection, which SAM 3 does not read",
}
"""Why tensors of a module are not found in a part as they are, by what their names contain."""


def part_from_checkpoint(checkpoint: Sam3Checkpoint, name: str) -> Part:
    """Compose one part and load its weights.

    Args:
        checkpoint: Where the weights come from. Only those of this part are read.
        name: One of :data:`PARTS`.

    Raises:
        SettingError: No such part, or one of a tracker that was not loaded.
        CheckpointKeysError: The checkpoint lacks weights of the part or has them in another shape.
    """
    definition = definition_of(name, DEFINITIONS, FAMILY)
    tensors = sam3_tensors(checkpoint.config, checkpoint.reference, checkpoint.tracker)
    loaded: dict[str, Tensor] = {}
    module = definition.build(checkpoint, loaded).eval().requires_grad_(False)
    origins = held_as_they_are(module, loaded)
    return Part(
        spec=definition.spec(tensors),
        inputs=definition.inputs(tensors),
        module=module,
        axis_limits=definition.limits(),
        origins=origins,
        folded={stored: _reason(stored) for stored in loaded if stored not in origins},
    )


def part_spec(
    config: Sam3Config, name: str, reference: str, tracker: Sam3TrackerVideoConfig | None = None
) -> PartSpec:
    """Interface of a part.

    Raises:
        SettingError: No such part, or one of a tracker that was not loaded.
    """
    tensors = sam3_tensors(config, reference, tracker)
    return definition_of(name, DEFINITIONS, FAMILY).spec(tensors)


def part_inputs(
    config: Sam3Config, name: str, reference: str, tracker: Sam3TrackerVideoConfig | None = None
) -> tuple[Input, ...]:
    """Definitions of a part's inputs, for :func:`samforge.models.part.example_inputs`.

    Raises:
        SettingError: No such part, or one of a tracker that was not loaded.
    """
    tensors = sam3_tensors(config, reference, tracker)
    return definition_of(name, DEFINITIONS, FAMILY).inputs(tensors)


def _reason(stored: str) -> str:
    """Why a tensor that was loaded is not in the module as it is."""
    stem = next((stem for stem in FOLDED if stem in stored), None)
    if stem is None:
        raise CheckpointError(f"{stored} was loaded and is not in the part that asked for it.")
    return FOLDED[stem]


def _vision(checkpoint: Sam3Checkpoint, loaded: dict[str, Tensor]) -> Vision | VisionWithTracker:
    vision = _vision_of_detector(checkpoint, loaded)
    if checkpoint.tracker is None:
        return vision
    return tracker_parts.vision_with_tracker(vision, checkpoint, loaded)


def _vision_of_detector(checkpoint: Sam3Checkpoint, loaded: dict[str, Tensor]) -> Vision:
    encoder = vision_encoder(checkpoint.config)
    if checkpoint.reference != META:
        loaded |= checkpoint.load({"vision_encoder": encoder})
        return Vision(encoder, checkpoint.config)
    geometry = geometry_encoder(checkpoint.config)
    loaded |= checkpoint.load({"vision_encoder": encoder, "geometry_encoder": geometry})
    return Vision(encoder, checkpoint.config, ClassToken(geometry))


def _text(checkpoint: Sam3Checkpoint, loaded: dict[str, Tensor]) -> Text:
    encoder, projection = text_encoder(checkpoint.config)
    loaded |= checkpoint.load({"text_encoder": encoder, "text_projection": projection})
    masks_zero = checkpoint.reference == META
    return Text(encoder, projection, checkpoint.config, checkpoint.eos_id, masks_zero=masks_zero)


def _detector(checkpoint: Sam3Checkpoint, loaded: dict[str, Tensor]) -> Detector:
    meta = checkpoint.reference == META
    return _detector_of_kind(DetectorWithClassToken if meta else Detector, checkpoint, loaded)


def _detector_with_boxes(checkpoint: Sam3Checkpoint, loaded: dict[str, Tensor]) -> Detector:
    return _detector_of_kind(DetectorWithBoxes, checkpoint, loaded)


def _detector_of_kind(
    kind: type[Detector], checkpoint: Sam3Checkpoint, loaded: dict[str, Tensor]
) -> Detector:
    modules = detector_modules(checkpoint.config)
    loaded |= checkpoint.load(modules.named())
    return kind(modules, checkpoint.config, clamps_presence=checkpoint.reference != META)


def _grounding(checkpoint: Sam3Checkpoint, loaded: dict[str, Tensor]) -> Grounding:
    return Grounding(
        _vision_of_detector(checkpoint, loaded),
        _text(checkpoint, loaded),
        _detector(checkpoint, loaded),
    )


_ALL: tuple[Sam3PartDef, ...] = (
    PartDef(
        name=VISION,
        build=_vision,
        inputs=lambda tensors: tensors.images,
        outputs=lambda tensors: (
            *specs_of(tensors.seen),
            *(() if tensors.tracker is None else tensors.tracker.maps),
        ),
        axes=(BATCH,),
        serves=capabilities.TEXT,
    ),
    PartDef(
        name=TEXT_ENCODER,
        build=_text,
        inputs=lambda tensors: tensors.input_ids,
        outputs=lambda tensors: specs_of(tensors.text),
        axes=(PROMPTS,),
        serves=capabilities.TEXT,
        stays_half=True,  # a phrase is encoded once
    ),
    PartDef(
        name=DETECTOR,
        build=_detector,
        inputs=lambda tensors: tensors.seen + tensors.text,
        outputs=lambda tensors: tensors.results,
        axes=(BATCH, PROMPTS),
        serves=capabilities.TEXT,
        stays_half=True,  # its products are too small to gain
    ),
    PartDef(
        name=DETECTOR_WITH_BOXES,
        build=_detector_with_boxes,
        inputs=lambda tensors: tensors.features + tensors.text + tensors.exemplars,
        outputs=lambda tensors: tensors.results,
        axes=(BATCH, PROMPTS, BOXES),
        serves=capabilities.BOXES,
        stays_half=True,
    ),
    PartDef(
        name="grounding",
        build=_grounding,
        inputs=lambda tensors: tensors.images + tensors.input_ids,
        outputs=lambda tensors: tensors.results,
        axes=(BATCH, PROMPTS),
    ),
    *tracker_parts.DEFINITIONS,
)
DEFINITIONS: Mapping[str, Sam3PartDef] = {one.name: one for one in _ALL}
"""Every part of the family by name."""
TRACKER_PARTS = tuple(one.name for one in tracker_parts.DEFINITIONS)
"""Names of those that a model has only with its tracker."""
PARTS = tuple(name for name in DEFINITIONS if name not in TRACKER_PARTS)
"""Names of those that every model has."""
DEFAULT_PARTS = tuple(name for name in PARTS if DEFINITIONS[name].serves is not None)
"""What a bundle holds unless a recipe says otherwise: all that :class:`Segmenter` runs."""
