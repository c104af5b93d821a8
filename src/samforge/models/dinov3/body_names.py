"""SAM 3D Body's checkpoint (``model.ckpt``): its backbone under transformers' names.

The correspondence of names is a fact of the two public implementations: Meta's ``dinov3`` package,
whose ViT the checkpoint holds behind ``backbone.encoder.``, and transformers' ``DINOv3ViTModel``.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from samforge.core.errors import CheckpointKeysError
from samforge.models.dinov3.config import BODY_PX
from samforge.models.sources import WeightSource

ENCODER = "backbone.encoder."
"""Prefix of the backbone; decoder, heads and body model stand beside it."""
PERIODS = "rope_embed.periods"
"""Wavelengths of the rotary encoding, (head size / 4,): a table, not a weight."""
BIAS_MASK = ".attn.qkv.bias_mask"
"""Zeros over the key's third of the bias, ones elsewhere."""

RULES: tuple[tuple[str, str], ...] = (
    (r"^cls_token$", "embeddings.cls_token"),
    (r"^storage_tokens$", "embeddings.register_tokens"),
    (r"^mask_token$", "embeddings.mask_token"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings."),
    (r"^blocks\.", "model.layer."),
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"\.ls(\d)\.gamma$", r".layer_scale\1.lambda1"),
    (r"\.mlp\.w1\.", ".mlp.gate_proj."),
    (r"\.mlp\.w2\.", ".mlp.up_proj."),
    (r"\.mlp\.w3\.", ".mlp.down_proj."),
    (r"\.mlp\.fc1\.", ".mlp.up_proj."),
    (r"\.mlp\.fc2\.", ".mlp.down_proj."),
)
"""What is replaced in a name behind the prefix, in this order. Norms keep their names."""
QKV = re.compile(r"^blocks\.(\d+)\.attn\.qkv\.(weight|bias)$")


class BodySource:
    """The backbone in SAM 3D Body's checkpoint, seen through transformers' names."""

    def __init__(self, source: WeightSource) -> None:
        self._source = source
        self._origin: dict[str, tuple[str, int | None]] = {}
        for stored in sorted(source.names()):
            name = stored.removeprefix(ENCODER)
            if name in (stored, PERIODS) or name.endswith(BIAS_MASK):
                continue
            if packed := QKV.match(name):
                target = f"model.layer.{packed[1]}.attention.{{}}_proj.{packed[2]}"
                for third, letter in enumerate("qkv"):
                    # The architecture has no key bias: what the checkpoint keeps there is masked.
                    if (letter, packed[2]) != ("k", "bias"):
                        self._origin[target.format(letter)] = (name, third)
            else:
                self._origin[_transformers_name(name)] = (name, None)

    def names(self) -> frozenset[str]:
        """Transformers' names."""
        return frozenset(self._origin)

    def tensor(self, name: str) -> Tensor:
        """Read one tensor in transformers' layout.

        Raises:
            CheckpointKeysError: A key bias is not masked, so the architecture cannot hold it.
        """
        origin, third = self._origin[name]
        tensor = self._stored(origin)
        if third is None:
            return tensor.unsqueeze(0) if name.endswith("mask_token") else tensor
        if origin.endswith(".bias"):
            tensor = self._masked(origin, tensor)
        return tensor.chunk(3)[third]

    def _masked(self, origin: str, bias: Tensor) -> Tensor:
        mask = origin + "_mask"
        if ENCODER + mask in self._source.names():
            bias = bias * self._stored(mask)
        if bias.chunk(3)[1].count_nonzero():
            raise CheckpointKeysError(
                f"{ENCODER}{origin} has a key bias, which DINOv3 masks out: it must be zero times "
                f"{ENCODER}{mask}. This is another model, or the file is damaged."
            )
        return bias

    def periods(self) -> Tensor | None:
        """Wavelengths of the rotary encoding as the checkpoint rounds them, if it brings them."""
        return self._stored(PERIODS) if ENCODER + PERIODS in self._source.names() else None

    def settings(self) -> dict[str, Any]:
        """Fields of the configuration, read off the shapes.

        Raises:
            CheckpointKeysError: Tensors that tell the sizes are missing.
        """
        cls_token = self._shape("embeddings.cls_token")
        width = cls_token[-1]
        periods = self.periods()
        head = 64 if periods is None else 4 * len(periods)
        gated = "model.layer.0.mlp.gate_proj.weight" in self._origin
        up_proj = self._shape("model.layer.0.mlp.up_proj.weight")
        layers = [int(match[1]) for match in map(_LAYER.match, self._origin) if match]
        return {
            "hidden_size": width,
            "intermediate_size": up_proj[0],
            "num_hidden_layers": max(layers) + 1,
            "num_attention_heads": max(1, width // head),
            "num_register_tokens": self._shape("embeddings.register_tokens")[1],
            "patch_size": self._shape("embeddings.patch_embeddings.weight")[-1],
            "use_gated_mlp": gated,
            "hidden_act": "silu" if gated else "gelu",
            "image_size": BODY_PX,
        }

    def digest(self) -> str:
        """Hash over the file."""
        return self._source.digest()

    def _shape(self, name: str) -> torch.Size:
        if name not in self._origin:
            raise CheckpointKeysError(
                f"The checkpoint has no {name} (at Meta's behind {ENCODER}), so the size of its "
                "backbone is unknown. Is it SAM 3D Body's model.ckpt with the DINOv3 backbone?"
            )
        return self._source.tensor(ENCODER + self._origin[name][0]).shape

    def _stored(self, name: str) -> Tensor:
        return self._source.tensor(ENCODER + name)


_LAYER = re.compile(r"^model\.layer\.(\d+)\.")


def _transformers_name(name: str) -> str:
    for pattern, replacement in RULES:
        name = re.sub(pattern, replacement, name)
    return name
