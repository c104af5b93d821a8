"""A DINOv3 checkpoint: configuration and weights by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from transformers import DINOv3ViTConfig

from samforge.core.errors import CheckpointError, CheckpointKeysError
from samforge.core.images import ImageSpec
from samforge.core.session import PartSpec
from samforge.models.dinov3.backbone import stock_model
from samforge.models.dinov3.parts import DEFINITIONS, FAMILY, PARTS
from samforge.models.part import Part, definition_of, example_inputs, held_as_they_are
from samforge.models.sources import WeightSource

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MASK_TOKEN = "embeddings.mask_token"  # noqa: S105
"""Replaces masked patches in pre-training: checkpoints may lack it, and no part reads it."""
FOLDED = dict.fromkeys(
    ("embeddings.cls_token", "embeddings.register_tokens"), "folded into the prefix tokens"
)
"""Why tensors of the checkpoint are not in the part as they are."""
GRAPH_SETTINGS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("hidden_act", "layer_norm_eps", "rope_theta", "image_size", "patch_size", "use_gated_mlp"),
    *("query_bias", "key_bias", "value_bias", "proj_bias", "mlp_bias", "num_register_tokens"),
)
"""Fields of the configuration that decide the graph."""
LISTED = 20
"""At most so many names in an error message."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dinov3Checkpoint:
    """Everything the backbone is made from."""

    name: str
    """As the user wrote it."""
    config: DINOv3ViTConfig
    """With the image size already set: rotary tables depend on it."""
    source: WeightSource
    """Tensors by transformers' names."""
    license_text: str
    """Licence of the weights, or a notice that names it."""
    periods: Tensor | None = None
    """(head size / 4,) of the rotary encoding, where the checkpoint brings its own."""
    family: str = FAMILY
    """Name of the architecture."""
    text: None = None
    """The model reads no text."""

    @property
    def image(self) -> ImageSpec:
        """How images are prepared for this model: ImageNet's mean and deviation."""
        return ImageSpec(size=self.config.image_size, mean=IMAGENET_MEAN, std=IMAGENET_STD)

    @property
    def part_names(self) -> tuple[str, ...]:
        """Every part of the family."""
        return PARTS

    @property
    def default_parts(self) -> tuple[str, ...]:
        """What a bundle holds unless a recipe says otherwise."""
        return PARTS

    def check(self) -> None:
        """Compare the checkpoint's names with the architecture's.

        Raises:
            CheckpointKeysError: Lists what is missing and what is unexpected.
        """
        found = self.source.names() - {MASK_TOKEN}
        wanted = set(state_shapes(self.config))
        missing, unexpected = sorted(wanted - found), sorted(found - wanted)
        if missing or unexpected:
            raise CheckpointKeysError(
                f"{self.name} does not match the architecture in its configuration."
                + _listed("missing", missing)
                + _listed("unexpected", unexpected)
            )

    def part(self, name: str) -> Part:
        """Compose the part and load its weights in float32.

        Args:
            name: ``backbone``.

        Raises:
            SettingError: No such part.
            CheckpointKeysError: A tensor is missing or has another shape.
            CheckpointError: A tensor holds NaN or infinity.
        """
        definition = definition_of(name, DEFINITIONS, FAMILY)
        loaded: dict[str, Tensor] = {}
        module = definition.build(self, loaded).eval().requires_grad_(False)
        del loaded[MASK_TOKEN]  # of training; nothing reads it
        origins = held_as_they_are(module, loaded)
        return Part(
            spec=definition.spec(self.config),
            inputs=definition.inputs(self.config),
            module=module,
            axis_limits=definition.limits(),
            origins=origins,
            folded={stored: FOLDED[stored] for stored in loaded if stored not in origins},
        )

    def spec(self, name: str) -> PartSpec:
        """Interface of the part.

        Raises:
            SettingError: No such part.
        """
        return definition_of(name, DEFINITIONS, FAMILY).spec(self.config)

    def inputs(self, name: str, sizes: Mapping[str, int], seed: int = 0) -> dict[str, Tensor]:
        """Random inputs of the part: normal, as normalized pixels are.

        Args:
            name: ``backbone``.
            sizes: Size of every axis of the part.
            seed: The same seed gives the same tensors.
        """
        inputs = definition_of(name, DEFINITIONS, FAMILY).inputs(self.config)
        return example_inputs(inputs, sizes, seed=seed)

    def settings(self) -> dict[str, Any]:
        """What decides the graph, as plain values."""
        return {name: getattr(self.config, name) for name in GRAPH_SETTINGS}

    def weight_count(self) -> int:
        """Numbers in all weights that the part reads."""
        return sum(prod(shape) for shape in state_shapes(self.config).values())

    def state(self) -> dict[str, Tensor]:
        """Read the stock model's state in float32, with an empty place for the mask token.

        Raises:
            CheckpointKeysError: A tensor is missing or has another shape.
            CheckpointError: A tensor holds NaN or infinity.
        """
        shapes, names = state_shapes(self.config), self.source.names()
        state = {MASK_TOKEN: torch.empty(1, 1, self.config.hidden_size, device="meta")}
        missing, wrong, broken = [], [], []
        for name, shape in shapes.items():
            if name not in names:
                missing.append(name)
                continue
            tensor = self.source.tensor(name)
            if tuple(tensor.shape) != shape:
                wrong.append(f"{name} {tuple(tensor.shape)}, not {shape}")
            # Detached: a Parameter of the file would become the module's own, and a step that
            # frees its module would empty the checkpoint.
            state[name] = tensor.detach().to(torch.float32, copy=True)  # aligned, see sam3
            if not state[name].isfinite().all():
                broken.append(name)
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
        return state


def state_shapes(config: DINOv3ViTConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that the backbone reads."""
    state = stock_model(config).state_dict()
    return {name: tuple(state[name].shape) for name in state if name != MASK_TOKEN}


def _listed(kind: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"\n{len(names)} {kind}: {', '.join(names[:LISTED])}{more}"
