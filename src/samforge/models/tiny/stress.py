"""The tiny model made as hard to quantize as a real ViT, without changing what it computes.

Large ViTs have a few LayerNorm channels a hundred times as large as the rest; the tiny model has
none, and naive INT8 costs it nothing. Here some channels of a LayerNorm's weight and bias are
multiplied, and the columns of every linear behind it divided by the same: the same function in
float32, and one scale for all channels leaves the others no steps.

In float16 the function holds as well as long as nothing overflows: the largest activation of the
stressed model is near 2,000, of 65,504.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from samforge.models.sources import WeightSource

SHARE = 0.03
"""Of a LayerNorm's channels, how many stand out."""
FACTORS = (50.0, 200.0)
"""By how much, drawn between these."""

VIT = r"^(?P<layer>(?:.*\.)?backbone\.layers\.\d+)\."
TEXT = r"^(?P<layer>(?:.*\.)?text_model\.encoder\.layers\.\d+)\."
DETR = r"^(?P<layer>(?:.*\.)?detr_encoder\.layers\.\d+)\."
ROLES: tuple[tuple[str, str, str], ...] = (
    (VIT, "layer_norm1", r"attention\.[qkv]_proj"),
    (VIT, "layer_norm2", r"mlp\.fc1"),
    (TEXT, "layer_norm1", r"self_attn\.[qkv]_proj"),
    (TEXT, "layer_norm2", r"mlp\.fc1"),
    # Its layer_norm1 also feeds an addition of positions.
    (DETR, "layer_norm2", r"cross_attn\.q_proj"),
    (DETR, "layer_norm3", r"mlp\.fc1"),
)
"""Block, LayerNorm in it, and all linears that read this LayerNorm and nothing else does."""


class StressedSource:
    """A checkpoint whose LayerNorms have outlier channels and whose function is unchanged."""

    def __init__(self, source: WeightSource, *, seed: int = 0) -> None:
        self._source = source
        self._seed = seed

    def names(self) -> frozenset[str]:
        """Names of all tensors."""
        return self._source.names()

    def tensor(self, name: str) -> Tensor:
        """Read one tensor, stressed where it belongs to a LayerNorm or reads one."""
        tensor = self._source.tensor(name)
        role = _role(name)
        if role is None:
            return tensor
        norm, is_norm = role
        width = int(tensor.shape[-1])
        factors = outlier_factors(norm, width, self._seed)
        # In float32: dividing float16 weights by 200 would leave subnormal numbers.
        wide = tensor.detach().to(torch.float32)
        return wide * factors if is_norm else wide / factors

    def digest(self) -> str:
        """Hash over the weights below and the stress."""
        text = f"{self._source.digest()}:stress:{self._seed}:{SHARE}:{FACTORS}"
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def outlier_factors(norm: str, width: int, seed: int) -> Tensor:
    """Factor of each channel of a LayerNorm: 1, or an outlier.

    Args:
        norm: Name of the LayerNorm in the checkpoint, without ``.weight``.
        width: Its channels.
        seed: The same name and seed give the same factors.

    Returns:
        (width,) in float32.
    """
    key = hashlib.sha256(f"{seed}:{norm}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(key[:8], "little"))
    factors = np.ones(width, np.float32)
    chosen = rng.choice(width, max(1, round(SHARE * width)), replace=False)
    factors[chosen] = rng.uniform(*FACTORS, len(chosen))
    return torch.from_numpy(factors)


def stressed_norms(names: Iterable[str]) -> tuple[str, ...]:
    """LayerNorms of a checkpoint that are stressed, sorted."""
    found = {role[0] for name in names if (role := _role(name)) is not None and role[1]}
    return tuple(sorted(found))


def _role(name: str) -> tuple[str, bool] | None:
    """The stressed LayerNorm that a tensor belongs to, and whether it is its own or a reader's."""
    for block, norm, readers in ROLES:
        match = re.match(block, name)
        if match is None:
            continue
        rest = name[match.end() :]
        path = f"{match['layer']}.{norm}"
        if rest in (f"{norm}.weight", f"{norm}.bias"):
            return path, True
        if re.fullmatch(readers + r"\.weight", rest):
            return path, False
    return None
