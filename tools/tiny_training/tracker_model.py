"""The tracker under training: transformers' modules, composed by the very parts that run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.models.sam3_tracker_video.modeling_sam3_tracker_video import (
    Sam3TrackerVideoMemoryFuserCXBlock,
)

from samforge.models import tiny
from samforge.models.part import Part
from samforge.models.sam3.checkpoint import Sam3Checkpoint
from samforge.models.sam3.loading import checkpoint_from_name
from samforge.models.sam3.parts import TRACKER_PARTS, part_from_checkpoint
from samforge.models.sam3.tracker.configuration import tracker_config
from samforge.models.sam3.tracker.mask_decoder import MaskDecoder, cell_positions
from samforge.models.sam3.tracker.memory_attention import MemoryAttention
from samforge.models.sam3.tracker.memory_encoder import META_STEPS, MemoryEncoder
from samforge.models.sam3.tracker.modules import MODEL, NECK, Vectors, tracker_shapes
from samforge.models.sam3.tracker.neck import Neck
from samforge.models.sam3.tracker.pointer import Pointer
from samforge.models.sam3.tracker.prompts import MaskInput, Points
from samforge.models.sam3.tracker.tensors import MEMORY_SCALE
from samforge.models.sources import SafetensorsSource

LAYER_SCALE = 0.1
"""Of the memory encoder's blocks; transformers starts some at 0, where nothing is learnt."""
FILE = "tracker.safetensors"
UNREAD = (f"{NECK}.fpn_layers.3.", f"{MODEL}.no_memory_positional_encoding")
"""Tensors of the architecture that nothing reads: zeros, so that they take no room in the wheel."""


class Trunk(nn.Module):
    """The detector's ViT, frozen."""

    def __init__(self, vision: Any) -> None:
        super().__init__()
        self.vision = vision.requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Tokens (B, E, s, s) of images (B, 3, S, S)."""
        return self.vision.trunk(images)  # type: ignore[no-any-return]


class Tracker(nn.Module):
    """All weights of the tracker and its neck, and the stages of the parts made of them.

    The stages hold no weights of their own: what is trained here is what is exported.
    """

    def __init__(self, seed: int, init: Path | None = None) -> None:
        """Build the stages.

        Args:
            seed: Of weights that are not given.
            init: File of weights to start from.
        """
        super().__init__()
        from transformers import Sam3TrackerVideoModel
        from transformers.models.sam3.modeling_sam3 import Sam3VisionNeck

        detector = checkpoint_from_name(tiny.NAME)
        self.config = tracker_settings(detector)
        torch.manual_seed(seed)
        model: Any = Sam3TrackerVideoModel(self.config, remove_vision_encoder=True)
        neck: Any = Sam3VisionNeck(detector.config.vision_config)
        start(model, neck, detector)
        self.weights = nn.ModuleDict({MODEL: model, NECK: neck})
        if init is not None:
            # Before the stages: the decoder keeps positions that follow from a random matrix.
            stored = {name: tensor.float() for name, tensor in load_file(init).items()}
            self.weights.load_state_dict(stored)
        image = detector.config.vision_config.image_size
        side = image // model.config.prompt_encoder_config.patch_size
        encoder = model.prompt_encoder
        self.neck = Neck(neck, model.mask_decoder.conv_s0, model.mask_decoder.conv_s1)
        self.points = Points(encoder, image)
        self.mask_input = MaskInput(encoder.mask_embed, encoder.no_mask_embed)
        self.decoder = MaskDecoder(
            model.mask_decoder,
            cell_positions(model.shared_image_embedding.positional_embedding, side),
            side,
            first=0,
        )
        self.pointer = Pointer(model.object_pointer_proj, Vectors(model, "no_object_pointer"))
        self.memory_attention = MemoryAttention(
            model.memory_attention,
            model.temporal_positional_encoding_projection_layer,
            Vectors(model, "memory_temporal_positional_encoding"),
            self.config,
            side,
            rounds=False,  # where they are used they are rounded; gradients are not
        )
        for stage, layer in zip(
            self.memory_attention.layers, model.memory_attention.layers, strict=True
        ):
            # The part multiplies the two projections beforehand; here they are learnt.
            attention = layer.cross_attn_image
            stage.cross_attention.value = nn.Sequential(attention.v_proj, attention.o_proj)
        self.memory_encoder = MemoryEncoder(
            model.memory_encoder,
            Vectors(model, "occlusion_spatial_embedding_parameter"),
            self.config,
            steps=META_STEPS,
            sizes=(image, side * MEMORY_SCALE),
        )
        self.mask_downsample = model.mask_downsample
        self.not_a_point, self.no_mask = encoder.not_a_point_embed, encoder.no_mask_embed

    @property
    def model(self) -> Any:
        """The tracker as transformers has it."""
        return self.weights[MODEL]

    def renew(self) -> None:
        """Take over weights that the parts keep as constants in another order: before each step."""
        temporal = self.model.memory_temporal_positional_encoding.flatten(1)
        self.memory_attention.temporal = temporal.roll(1, 0)


def state_of(weights: nn.ModuleDict) -> dict[str, Tensor]:
    """Tensors by their names in a checkpoint, on the processor, in float16.

    Args:
        weights: ``Tracker.weights``, or their average.
    """
    return {
        name: (torch.zeros_like(tensor) if name.startswith(UNREAD) else tensor)
        .detach()
        .half()
        .contiguous()
        .cpu()
        for name, tensor in weights.state_dict().items()
    }


def tracker_settings(detector: Sam3Checkpoint) -> Any:
    """Configuration of the tiny tracker."""
    settings = json.loads(tiny.TRACKER_CONFIG_PATH.read_text())
    return tracker_config(settings, detector.config, detector.reference, tiny.NAME)


@torch.no_grad()
def start(model: Any, neck: nn.Module, detector: Sam3Checkpoint) -> None:
    """Set the weights that training begins with.

    Layers start as torch starts them, as Meta's did, instead of transformers' narrow normal; the
    neck as the detector's, which reads the same tokens.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | nn.Embedding):
            module.reset_parameters()
        if isinstance(module, Sam3TrackerVideoMemoryFuserCXBlock):
            module.scale.fill_(LAYER_SCALE)
    # Two buffers in transformers, one in Meta's checkpoint.
    embedding = model.prompt_encoder.shared_embedding.positional_embedding
    model.shared_image_embedding.positional_embedding.copy_(embedding)
    for name in (
        "no_memory_embedding",
        "memory_temporal_positional_encoding",
        "no_object_pointer",
        "occlusion_spatial_embedding_parameter",
    ):
        nn.init.trunc_normal_(getattr(model, name), std=0.02)
    # Shares of a mask become logits, as the mask decoder reads them.
    model.mask_downsample.weight.fill_(20.0 / model.mask_downsample.weight.numel())
    model.mask_downsample.bias.fill_(-10.0)
    prefix = "vision_encoder.neck."
    neck.load_state_dict(
        {name: detector.source.tensor(prefix + name).float() for name in neck.state_dict()}
    )


def trunk() -> Trunk:
    """The ViT that the tracker looks through."""
    return Trunk(part_from_checkpoint(checkpoint_from_name(tiny.NAME), "vision").module)


def save_weights(weights: nn.ModuleDict, folder: Path, **notes: str) -> Path:
    """Write the weights, whole or not at all.

    Raises:
        SystemExit: They are not finite in float16.
    """
    state = state_of(weights)
    bad = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if bad:
        raise SystemExit(f"Weights are not finite in float16: {bad[:5]}.")
    path = folder / FILE
    temporary = path.with_suffix(".part")
    save_file(state, temporary, metadata={"format": "pt", **notes})
    temporary.replace(path)
    return path


def checkpoint_with(weights: Path) -> Sam3Checkpoint:
    """The tiny checkpoint with a tracker from a file, checked like any other."""
    detector = checkpoint_from_name(tiny.NAME)
    checkpoint = Sam3Checkpoint(
        name=tiny.NAME,
        reference=detector.reference,
        config=detector.config,
        source=SafetensorsSource((tiny.WEIGHTS_PATH, weights)),
        tokenizer=detector.tokenizer,
        eos_id=detector.eos_id,
        license_text=detector.license_text,
        tracker=tracker_settings(detector),
    )
    checkpoint.check()
    return checkpoint


def parts_with(weights: Path, device: torch.device) -> dict[str, Part]:
    """The parts that run, on a device."""
    checkpoint = checkpoint_with(weights)
    names = ("vision", *TRACKER_PARTS)
    parts = {name: part_from_checkpoint(checkpoint, name) for name in names}
    for part in parts.values():
        part.module.to(device)
    return parts


def parameter_count() -> int:
    """Numbers in the tracker's weights."""
    detector = checkpoint_from_name(tiny.NAME)
    shapes = tracker_shapes(tracker_settings(detector), detector.config)
    return sum(int(torch.Size(shape).numel()) for shape in shapes.values())
