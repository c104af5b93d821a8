"""A SAM 3 checkpoint: configuration, weights by name, tokenizer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import Sam3Config, Sam3Model
from transformers.models.sam3_tracker_video.configuration_sam3_tracker_video import (
    Sam3TrackerVideoConfig,
)

from samforge.core.errors import CheckpointError, CheckpointKeysError, SettingError
from samforge.core.images import ImageSpec
from samforge.models.sam3.tracker.modules import tracker_shapes
from samforge.models.sources import WeightSource

PREFIX = "detector_model."
"""transformers' video checkpoints (facebook/sam3 is one) keep the detector behind this."""
OTHER_MODELS = re.compile(r"^(tracker_model|tracker_neck)\.")
"""Weights of the video tracker, which shares the checkpoint with the detector: read on request."""
LISTED = 20
"""At most so many names in an error message."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sam3Checkpoint:
    """Everything the parts of one model are made from."""

    name: str
    """As the user wrote it."""
    reference: str
    """Whose computation its parts are: ``meta`` or ``transformers``."""
    config: Sam3Config
    """With the image size already set: position tables depend on it."""
    source: WeightSource
    """Tensors by name, possibly behind :data:`PREFIX`."""
    tokenizer: Path | None
    """A ``tokenizers`` JSON; None only with random weights."""
    eos_id: int
    """Token that closes every phrase."""
    license_text: str
    """Licence of the weights, or a notice that names it."""
    tracker: Sam3TrackerVideoConfig | None = None
    """Of the video tracker; None where its weights are left alone."""

    @property
    def image(self) -> ImageSpec:
        """How images are prepared for this model."""
        return ImageSpec(size=self.config.vision_config.image_size)

    @property
    def context(self) -> int:
        """Tokens in a row of ids."""
        return int(self.config.text_config.max_position_embeddings)

    def check(self) -> None:
        """Compare the checkpoint's names with the architecture's.

        Raises:
            CheckpointKeysError: Lists what is missing and what is unexpected.
        """
        found = {name.removeprefix(PREFIX) for name in self.source.names()}
        wanted = set(state_shapes(self.config))
        if self.tracker is None:
            found = {name for name in found if not OTHER_MODELS.match(name)}
        else:
            wanted |= set(tracker_shapes(self.tracker, self.config))
        missing, unexpected = sorted(wanted - found), sorted(found - wanted)
        if missing or unexpected:
            raise CheckpointKeysError(
                f"{self.name} does not match the architecture in its configuration."
                + _listed("missing", missing)
                + _listed("unexpected", unexpected)
            )

    def load(self, modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
        """Fill modules made on the meta device with float32 weights.

        Args:
            modules: By the prefix of their names in the checkpoint.

        Returns:
            The tensors that the modules hold now, by their names in the checkpoint.

        Raises:
            CheckpointKeysError: A tensor is missing, or has another shape than the module wants.
            CheckpointError: A tensor holds NaN or infinity, which no calibration need ever meet.
        """
        names = self.source.names()
        missing, wrong, broken = [], [], []
        loaded: dict[str, Tensor] = {}
        for prefix, module in modules.items():
            state: dict[str, Tensor] = {}
            for key, placeholder in module.state_dict().items():
                name = f"{prefix}.{key}"
                stored = PREFIX + name if PREFIX + name in names else name
                if stored not in names:
                    missing.append(name)
                    continue
                tensor = self.source.tensor(stored)
                if tensor.shape != placeholder.shape:
                    wrong.append(f"{name} {tuple(tensor.shape)}, not {tuple(placeholder.shape)}")
                # A copy: a step that frees its module must not empty the checkpoint, and in a
                # mapped file tensors lie at odd addresses, where kernels sum in another order
                # than they do on the same numbers once exported and read back.
                state[key] = tensor.detach().to(torch.float32, copy=True)
                loaded[stored] = state[key]
                if not state[key].isfinite().all():
                    broken.append(name)
            if not missing and not wrong and not broken:
                module.load_state_dict(state, assign=True)
        if missing or wrong:
            raise CheckpointKeysError(
                f"{self.name} does not hold the tensors that its configuration promises."
                + _listed("missing", missing)
                + _listed("of another shape", wrong)
            )
        if broken:
            raise CheckpointError(
                f"{self.name} holds NaN or infinity: it is damaged, or its training diverged."
                + _listed("not finite", broken)
            )
        return loaded


def state_shapes(config: Sam3Config) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the architecture."""
    with torch.device("meta"):
        model = Sam3Model(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def with_image_size(config: Sam3Config, size: int | None) -> Sam3Config:
    """Set the image size before anything is constructed: rotary tables are built from it.

    Raises:
        SettingError: The size is no positive multiple of the coarsest feature map's stride.
    """
    vision = config.vision_config
    stride = int(vision.backbone_config.patch_size / min(1.0, *vision.scale_factors[:-1]))
    size = vision.image_size if size is None else size
    if size < stride or size % stride:
        below = max(stride, size // stride * stride)
        raise SettingError(
            f"image size {size} is no multiple of {stride} pixels, the stride of the coarsest "
            f"feature map. The nearest sizes are {below} and {below + stride}."
        )
    vision.image_size = size
    vision.backbone_feature_sizes = [[cells, cells] for cells in feature_sizes(config)]
    return config


def feature_sizes(config: Sam3Config) -> list[int]:
    """Side of each feature map that the detector uses, in cells, from fine to coarse.

    288, 144 and 72 for facebook/sam3 at 1008 pixels.
    """
    vision = config.vision_config
    tokens = vision.image_size // vision.backbone_config.patch_size
    # The coarsest level is dead code in the stock detector.
    return [int(tokens * scale) for scale in vision.scale_factors[:-1]]


def _listed(kind: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"\n{len(names)} {kind}: {', '.join(names[:LISTED])}{more}"
