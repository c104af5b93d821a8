"""Outliers of many kinds, planted into the tiny checkpoint without changing what it computes.

:mod:`samforge.models.tiny.stress` makes LayerNorm channels stand out. A network lets more be moved
from one weight into the next: the channels of values, of what lies behind a ReLU, of a convolution,
of queries against keys, and constants that a bias adds and the next bias takes away. Each is a
*kind*; they can be planted together.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from samforge.models.sources import WeightSource
from samforge.models.tiny.stress import DETR, FACTORS, ROLES, SHARE, TEXT, VIT

HEADS = 4
"""Attention heads of every part of the tiny model."""
LOUD_HEAD = 128.0
"""By how much one head stands out."""
SHIFTS = (20.0, 80.0)
"""What is added to a channel's bias, drawn between these."""
ATTENTION = r"^(?P<layer>(?:detr_\w+|geometry_encoder)\.layers\.\d+\.\w*attn|.*prompt_cross_attn)\."
RELU_MLP = r"^(?P<layer>(?:detr_\w+|geometry_encoder)\.layers\.\d+\.mlp)\."
LEVEL = r"^(?P<layer>vision_encoder\.neck\.fpn_layers\.\d+)\."
SECOND_STAGE = "mask_decoder.pixel_decoder.conv_layers.1"
"""Reads the norm of the stage before it and the finest feature map, summed."""

Choose = Callable[[np.random.Generator, int], np.ndarray]
"""Factors or shifts of so many channels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Planting:
    """One place where channels are made to stand out."""

    writers: tuple[str, ...]
    """Modules whose output channels are changed."""
    readers: tuple[str, ...]
    """Modules that read those channels, and all that do."""
    choose: Choose
    """Draws the change of each channel."""
    shift: bool = False
    """Whether a constant is added to the channels, instead of multiplying them."""
    opposite: bool = False
    """Whether readers are changed in their output channels: keys against queries."""


def some_channels(rng: np.random.Generator, width: int) -> np.ndarray:
    """3 % of the channels, 50 to 200 times as large."""
    factors = np.ones(width, np.float32)
    chosen = rng.choice(width, max(1, round(SHARE * width)), replace=False)
    factors[chosen] = rng.uniform(*FACTORS, len(chosen))
    return factors


def one_head(rng: np.random.Generator, width: int) -> np.ndarray:
    """All channels of one head, 128 times as large."""
    factors = np.ones((HEADS, width // HEADS), np.float32)
    factors[rng.integers(HEADS)] = LOUD_HEAD
    return factors.reshape(-1)


def some_rotary_pairs(rng: np.random.Generator, width: int) -> np.ndarray:
    """As :func:`some_channels`, alike for the two channels that rotary encoding turns together."""
    return np.repeat(some_channels(rng, width // 2), 2)


def some_constants(rng: np.random.Generator, width: int) -> np.ndarray:
    """Constants for 3 % of the channels."""
    shifts = np.zeros(width, np.float32)
    chosen = rng.choice(width, max(1, round(SHARE * width)), replace=False)
    shifts[chosen] = rng.uniform(*SHIFTS, len(chosen)) * rng.choice([-1, 1], len(chosen))
    return shifts


def _places(names: Iterable[str], block: str) -> list[str]:
    found = (re.match(block, name) for name in names)
    return sorted({match["layer"] for match in found if match is not None})


def _values(names: frozenset[str], block: str, inner: str, choose: Choose) -> Iterator[Planting]:
    for layer in _places(names, block):
        own = f"{layer}.{inner}".rstrip(".")
        out = "out_proj" if f"{own}.out_proj.weight" in names else "o_proj"
        yield Planting(writers=(f"{own}.v_proj",), readers=(f"{own}.{out}",), choose=choose)


def _vision_heads(names: frozenset[str]) -> Iterator[Planting]:
    yield from _values(names, VIT, "attention", one_head)


def _one_layer(names: frozenset[str]) -> Iterator[Planting]:
    yield from list(_vision_heads(names))[3:4]


def _detector_heads(names: frozenset[str]) -> Iterator[Planting]:
    yield from _values(names, ATTENTION, "", one_head)


def _some_values(names: frozenset[str]) -> Iterator[Planting]:
    yield from _values(names, VIT, "attention", some_channels)
    yield from _values(names, TEXT, "self_attn", some_channels)
    yield from _values(names, ATTENTION, "", some_channels)


def _value_biases(names: frozenset[str]) -> Iterator[Planting]:
    for one in _some_values(names):
        yield Planting(writers=one.writers, readers=one.readers, choose=some_constants, shift=True)


def _relu_mlps(names: frozenset[str]) -> Iterator[Planting]:
    for mlp in _places(names, RELU_MLP):
        yield Planting(writers=(f"{mlp}.fc1",), readers=(f"{mlp}.fc2",), choose=some_channels)


def _neck(names: frozenset[str]) -> Iterator[Planting]:
    for level in _places(names, LEVEL):
        first, second = f"{level}.proj1", f"{level}.proj2"
        yield Planting(writers=(first,), readers=(second,), choose=some_channels)
        if f"{level}.scale_layers.0.weight" in names:
            scale = f"{level}.scale_layers.0"
            yield Planting(writers=(scale,), readers=(first,), choose=some_channels)


def _queries(names: frozenset[str]) -> Iterator[Planting]:
    for block, inner in ((VIT, "attention"), (TEXT, "self_attn"), (ATTENTION, "")):
        for layer in _places(names, block):
            own = f"{layer}.{inner}".rstrip(".")
            yield Planting(
                writers=(f"{own}.q_proj",),
                readers=(f"{own}.k_proj",),
                choose=some_rotary_pairs,
                opposite=True,
            )


def _norms(names: frozenset[str], blocks: tuple[str, ...], choose: Choose) -> Iterator[Planting]:
    for block, norm, linears in ROLES:
        if block not in blocks:
            continue
        for layer in _places(names, block):
            inside = (name.removesuffix(".weight") for name in names if name.startswith(layer))
            yield Planting(
                writers=(f"{layer}.{norm}",),
                readers=tuple(
                    sorted(n for n in inside if re.fullmatch(linears, n[len(layer) + 1 :]))
                ),
                choose=choose,
                shift=choose is some_constants,
            )


def _norm_biases(names: frozenset[str]) -> Iterator[Planting]:
    yield from _norms(names, (VIT, TEXT, DETR), some_constants)


def _text(names: frozenset[str]) -> Iterator[Planting]:
    yield from _norms(names, (TEXT,), some_channels)
    yield from _values(names, TEXT, "self_attn", one_head)


def _mask_norm(names: frozenset[str]) -> Iterator[Planting]:
    if f"{SECOND_STAGE}.weight" in names:
        yield Planting(
            writers=(
                "mask_decoder.pixel_decoder.norms.0",
                "vision_encoder.neck.fpn_layers.0.proj2",
            ),
            readers=(SECOND_STAGE,),
            choose=some_channels,
        )


KINDS: dict[str, Callable[[frozenset[str]], Iterator[Planting]]] = {
    "vision-heads": _vision_heads,
    "detector-heads": _detector_heads,
    "values": _some_values,
    "relu-mlps": _relu_mlps,
    "neck": _neck,
    "queries-and-keys": _queries,
    "norm-biases": _norm_biases,
    "value-biases": _value_biases,
    "text": _text,
    "mask-norm": _mask_norm,
    "one-layer": _one_layer,
}
"""What can be planted: one head of every vision layer; of every attention of the detector; a few
value channels everywhere; hidden channels of ReLU MLPs; the neck's convolutions; queries against
keys; constants in LayerNorm biases; in value biases; the text encoder; the norm and the feature map
that one convolution of the mask head reads; one head of one layer."""


class PlantedSource:
    """A checkpoint with outliers of some kinds and an unchanged function."""

    def __init__(self, source: WeightSource, kinds: Iterable[str], *, seed: int = 0) -> None:
        self._source = source
        self._kinds = tuple(kinds)
        self._seed = seed
        self._plantings = [one for kind in self._kinds for one in KINDS[kind](source.names())]

    def names(self) -> frozenset[str]:
        """Names of all tensors."""
        return self._source.names()

    def tensor(self, name: str) -> Tensor:
        """Read one tensor, changed where it writes or reads a channel that stands out."""
        module, _, leaf = name.rpartition(".")
        tensor = self._source.tensor(name)
        own = [one for one in self._plantings if module in (*one.writers, *one.readers)]
        if not own or leaf not in ("weight", "bias"):
            return tensor
        tensor = tensor.detach().to(torch.float32)
        # Constants first: what is multiplied later is multiplied with them.
        for one in sorted(own, key=lambda one: not one.shift):
            tensor = self._changed(one, module, leaf, tensor)
        return tensor

    def digest(self) -> str:
        """Hash over the weights below and what is planted."""
        text = f"{self._source.digest()}:planted:{self._seed}:{self._kinds}"
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"

    def _changed(self, one: Planting, module: str, leaf: str, tensor: Tensor) -> Tensor:
        writes = module in one.writers
        if one.shift:
            if leaf == "weight":
                return tensor
            change = self._drawn(one)
            if writes:
                return tensor + change
            # The constant goes through the weight as it was before anything was multiplied.
            weight = self._source.tensor(f"{module}.weight").detach().double()
            return (tensor.double() - weight @ change.double()).float()
        change = self._drawn(one)
        if writes or one.opposite:
            axis = 1 if _is_transposed(module) and leaf == "weight" else 0
            change = change if writes else 1 / change
        elif leaf == "bias":
            return tensor
        else:
            axis, change = (0 if _is_transposed(module) else 1), 1 / change
        shape = [1] * tensor.ndim
        shape[axis] = -1
        return tensor * change.view(shape)

    def _drawn(self, one: Planting) -> Tensor:
        """The change of each channel; the same name and seed give the same."""
        width = len(self._source.tensor(f"{one.writers[0]}.bias"))
        key = hashlib.sha256(f"{self._seed}:{one.writers[0]}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(key[:8], "little"))
        return torch.from_numpy(one.choose(rng, width))


def _is_transposed(module: str) -> bool:
    """A transposed convolution counts its input channels first."""
    return ".scale_layers." in module
