"""What a lowering may change: number formats, kernels and approximations, each measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch

from samforge.core.errors import SettingError

PRECISIONS = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.bfloat16,
}
"""Type of activations between kernels; fp8 names the type of its matrix products' operands."""
CHOICES = {
    "residual": ("fp32", "half"),
    "attention": ("auto", "fastest", "triton", "cudnn", "flash", "explicit"),
    "position_bias": ("separable", "explicit", "sdpa"),
    "sums": ("apart", "joined"),
    "gelu": ("exact", "fast"),
    "weight_scales": ("channel", "tensor"),
}
SENSITIVE = (
    "*box_head*",
    "*presence_head*",
    "*ref_point_head*",
    "*reference_points*",
    "*scoring*",
)
"""Layers that stay float32: a box or a score is read off them, and they are a thousandth of the
work."""
HALF_IN_FP8 = ("*decoder*", "*text*", "*encoder.layers*", "*scoring*", "*masks*", "*class_token*")
"""Linears that fp8 leaves in bf16: those of other parts, where one holds the whole model, as
``grounding`` does, and the class token's, which are no work and stand behind every phrase."""
WANTS_QUANTIZED = ("*o_proj*",)
"""Linears that fp8 leaves in bf16 unless the kernel before them quantizes: they gain 7 us by a
faster product (17.6 to 10.5 us on an H100), which a pass over their input would lose."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lowering:
    """How an exported program becomes one that a GPU runs fast."""

    precision: str = "bf16"
    """``fp32``, ``bf16``, ``fp16`` or ``fp8``: E4M3 operands in the large linears, else bf16."""
    residual: str = "fp32"
    """Type of what LayerNorm gives and residual sums keep: ``fp32``, as under autocast, or
    ``half``, which saves a third of their traffic."""
    attention: str = "auto"
    """Kernel of attention without a mask: ``cudnn``, ``flash``, ``triton``, the ``fastest`` of
    them for each shape on an H100, ``explicit`` products, or ``auto``: torch's own choice. With
    ``triton`` and ``fastest``, a few keys with a bias each have a kernel too."""
    position_bias: str = "separable"
    """Attention with a bias for every query and key: a ``separable`` one over a grid streams
    through a Triton kernel, any other becomes ``explicit`` products; or torch's ``sdpa``, which is
    slower than they are (detector with 16 phrases on an H200: 30.6 against 26.4 ms)."""
    sums: str = "apart"
    """Residual sums and the LayerNorms behind them as two operators for the compiler to fuse, or
    ``joined`` in a Triton kernel (12 against 20 us a half layer on an H200)."""
    gelu: str = "fast"
    """``exact`` with erf, or ``fast``: within 2.6e-5 of it at a third of the instructions."""
    weight_scales: str = "channel"
    """One fp8 scale an output ``channel`` or one a weight ``tensor``."""
    scales: Mapping[str, float] = field(default_factory=dict)
    """Scale of the fp8 input of each linear by its module path: largest value over 448."""
    keep_fp32: tuple[str, ...] = SENSITIVE
    """Module path patterns of linears that stay float32."""
    keep_half: tuple[str, ...] = HALF_IN_FP8
    """Module path patterns of linears that ``fp8`` leaves in bf16."""
    half_features: bool = False
    """Features pass between parts in half, channels last, instead of as the interface's float32."""

    @classmethod
    def for_gpu(cls, precision: str, scales: Mapping[str, float] | None = None) -> Lowering:
        """What runs fastest on an NVIDIA GPU within the gates of a precision.

        docs/developers/gpu-measurements.md has the measurements behind each choice.
        Residual sums stay float32 in fp16, whose largest value a ViT's outlier channels can reach.
        """
        return cls(
            precision=precision,
            residual="fp32" if PRECISIONS[precision] in (torch.float32, torch.float16) else "half",
            attention="fastest",
            sums="joined",
            scales=scales or {},
            half_features=True,
        )

    def __post_init__(self) -> None:
        for name, allowed in (("precision", tuple(PRECISIONS)), *CHOICES.items()):
            value = getattr(self, name)
            if value not in allowed:
                raise SettingError(
                    f"lowering.{name} is {value!r}. Allowed: {', '.join(map(repr, allowed))}."
                )

    @property
    def compute(self) -> torch.dtype:
        """Type of activations between kernels."""
        return PRECISIONS[self.precision]

    @property
    def normed(self) -> torch.dtype:
        """Type of a normalization's result."""
        return torch.float32 if self.residual == "fp32" else self.compute

    def wants_quantized(self, path: str) -> bool:
        """Whether fp8 pays for the linear at a module path only where its input comes in E4M3."""
        return _matches(path, WANTS_QUANTIZED)

    def linear_precision(self, path: str) -> str:
        """``fp32``, ``half`` or ``fp8`` for the linear at a module path."""
        if self.precision == "fp32" or _matches(path, self.keep_fp32):
            return "fp32"
        if self.precision != "fp8" or path not in self.scales or _matches(path, self.keep_half):
            return "half"
        return "fp8"


def _matches(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)
