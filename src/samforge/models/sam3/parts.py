"""The parts of SAM 3 and their interfaces: checkpoint -> part."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import Sam3Config

from samforge.core.errors import CheckpointError, SettingError
from samforge.core.reference import META
from samforge.core.session import PartSpec, TensorSpec
from samforge.models.part import Part, held_as_they_are
from samforge.models.sam3.checkpoint import Sam3Checkpoint, feature_sizes
from samforge.models.sam3.class_token import ClassToken
from samforge.models.sam3.detector import Detector, DetectorWithBoxes, DetectorWithClassToken
from samforge.models.sam3.grounding import Grounding
from samforge.models.sam3.modules import detector_modules, geometry_encoder
from samforge.models.sam3.text import Text, text_encoder
from samforge.models.sam3.vision import Vision, vision_encoder

PARTS = ("vision", "text", "detector", "detector_boxes", "grounding")
"""Every part of the family."""
DEFAULT_PARTS = ("vision", "text", "detector", "detector_boxes")
"""What a bundle holds unless a recipe says otherwise: all that :class:`Segmenter` runs."""
FOLDED = {
    "geometry_encoder": "folded into the class token, or left out where no boxes are asked",
    "vision_encoder.neck": "left out: the coarsest feature map, which the detector does not read",
    "mask_decoder.pixel_decoder": "left out: a stage for the coarsest feature map",
    "mask_decoder.semantic_projection": "left out: a head that detection does not read",
    "text_encoder.text_projection": "left out: CLIP's own projection, which SAM 3 does not read",
}
"""Why tensors of a module are not found in a part as they are, by the beginning of their names."""
LIMITS = {"batch": (1, None), "prompts": (1, None), "boxes": (1, None)}


def part_from_checkpoint(checkpoint: Sam3Checkpoint, name: str) -> Part:
    """Compose one part and load its weights.

    Args:
        checkpoint: Where the weights come from. Only those of this part are read.
        name: One of :data:`PARTS`.

    Raises:
        SettingError: No such part.
        CheckpointKeysError: The checkpoint lacks weights of the part or has them in another shape.
    """
    if name not in PARTS:
        raise SettingError(f"sam3 has no part '{name}'. Its parts: {', '.join(PARTS)}.")
    spec = part_spec(checkpoint.config, name, checkpoint.reference)
    used = {axis for tensor in spec.inputs for axis in tensor.shape if isinstance(axis, str)}
    loaded: dict[str, Tensor] = {}
    module = _module(checkpoint, name, loaded).eval().requires_grad_(False)
    origins = held_as_they_are(module, loaded)
    return Part(
        spec=spec,
        module=module,
        axis_limits={axis: limits for axis, limits in LIMITS.items() if axis in used},
        origins=origins,
        folded={stored: _reason(stored) for stored in loaded if stored not in origins},
    )


def _reason(stored: str) -> str:
    """Why a tensor that was loaded is not in the module as it is."""
    stem = next((stem for stem in FOLDED if f"{stem}." in stored), None)
    if stem is None:
        raise CheckpointError(f"{stored} was loaded and is not in the part that asked for it.")
    return FOLDED[stem]


def _module(checkpoint: Sam3Checkpoint, name: str, loaded: dict[str, Tensor]) -> nn.Module:
    if name == "vision":
        return _vision(checkpoint, loaded)
    if name == "text":
        return _text(checkpoint, loaded)
    if name == "grounding":
        return Grounding(
            _vision(checkpoint, loaded),
            _text(checkpoint, loaded),
            _detector(checkpoint, name, loaded),
        )
    return _detector(checkpoint, name, loaded)


def _vision(checkpoint: Sam3Checkpoint, loaded: dict[str, Tensor]) -> Vision:
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


def _detector(checkpoint: Sam3Checkpoint, name: str, loaded: dict[str, Tensor]) -> Detector:
    modules = detector_modules(checkpoint.config)
    loaded |= checkpoint.load(modules.named())
    meta = checkpoint.reference == META
    kind: type[Detector] = DetectorWithClassToken if meta else Detector
    if name == "detector_boxes":
        kind = DetectorWithBoxes
    return kind(modules, checkpoint.config, clamps_presence=not meta)


def part_spec(config: Sam3Config, name: str, reference: str) -> PartSpec:
    """Interface of a part; dynamic axes are ``batch``, ``prompts`` and ``boxes``."""
    images, input_ids, features, text, exemplars, results = _tensors(config)
    seen = features
    if reference == META:
        width = config.detr_encoder_config.hidden_size
        seen = (*features, _float("class_token", "batch", 1, width))
    interfaces: dict[str, tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]] = {
        "vision": (images, seen),
        "text": (input_ids, text),
        "detector": (seen + text, results),
        "detector_boxes": (features + text + exemplars, results),
        "grounding": (images + input_ids, results),
    }
    inputs, outputs = interfaces[name]
    return PartSpec(name=name, inputs=inputs, outputs=outputs)


def _tensors(config: Sam3Config) -> tuple[tuple[TensorSpec, ...], ...]:
    """Groups of tensors that the interfaces are made of."""
    size, cells = config.vision_config.image_size, feature_sizes(config)
    width = config.detr_encoder_config.hidden_size
    context = config.text_config.max_position_embeddings
    queries = config.detr_decoder_config.num_queries
    found = ("batch", "prompts", queries)
    return (
        (_float("images", "batch", 3, size, size),),
        (TensorSpec(name="input_ids", dtype="int64", shape=("prompts", context)),),
        tuple(
            _float(f"fpn_{level}", "batch", width, side, side) for level, side in enumerate(cells)
        ),
        (
            _float("text_features", "prompts", context, width),
            TensorSpec(name="text_mask", dtype="bool", shape=("prompts", context)),
        ),
        (
            _float("boxes_cxcywh", "batch", "prompts", "boxes", 4),
            TensorSpec(name="box_labels", dtype="int64", shape=("batch", "prompts", "boxes")),
        ),
        (
            _float("pred_logits", *found),
            _float("pred_boxes", *found, 4),
            _float("pred_masks", *found, cells[0], cells[0]),
            _float("presence_logit", "batch", "prompts"),
        ),
    )


def _float(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=shape)
