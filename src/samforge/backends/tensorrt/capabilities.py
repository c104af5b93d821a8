"""What each GPU generation can do, so that a build refuses early and says why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from samforge.backends.tensorrt.library import RTX, TENSORRT, Flavour, Version
from samforge.core.errors import SettingError


@dataclass(frozen=True, kw_only=True, slots=True)
class Capability:
    """One compute capability."""

    name: str
    """As ``--compute-capability`` takes it: ``89``."""
    gpus: str
    """Cards that have it."""
    formats: frozenset[str]
    """Number formats of matrix products that TensorRT runs on it."""
    rtx_formats: frozenset[str] = frozenset()
    """The same for TensorRT for RTX; empty where that does not run at all."""

    def formats_of(self, flavour: Flavour) -> frozenset[str]:
        """Number formats of a flavour."""
        return self.rtx_formats if flavour is RTX else self.formats


_AMPERE = frozenset({"fp32", "fp16", "bf16", "int8"})
_ADA = _AMPERE | {"fp8"}

# TensorRT's support matrix (10.16 and 11.4) and that of TensorRT for RTX 1.7. That RTX has neither
# fp32 products nor int8 on SM75 is what its builder answers.
CAPABILITIES = {
    capability.name: capability
    for capability in (
        Capability(
            name="75",
            gpus="T4, RTX 20",
            formats=frozenset({"fp32", "fp16", "int8"}),
            rtx_formats=frozenset({"fp16"}),
        ),
        Capability(name="80", gpus="A100, A30", formats=_AMPERE, rtx_formats=_AMPERE),
        Capability(name="86", gpus="A10, RTX 30", formats=_AMPERE, rtx_formats=_AMPERE),
        Capability(name="87", gpus="Jetson Orin", formats=_AMPERE),
        Capability(name="89", gpus="L4, L40S, RTX 40", formats=_ADA, rtx_formats=_ADA),
        Capability(name="90", gpus="H100, H200", formats=_ADA),
        Capability(name="100", gpus="B200", formats=_ADA),
        Capability(name="110", gpus="Jetson Thor", formats=_ADA),
        Capability(name="120", gpus="RTX 50, RTX PRO 6000", formats=_ADA, rtx_formats=_ADA),
        Capability(name="121", gpus="DGX Spark", formats=_ADA, rtx_formats=_ADA),
    )
}
"""Every compute capability we know, by name."""

FORMATS_OF_PRECISION = {
    "fp32": ("fp32",),
    "fp16": ("fp16",),
    "bf16": ("bf16",),
    "int8": ("int8", "fp16"),
    "fp8": ("fp8", "fp16"),
    "int8-weights": ("fp16",),
}
"""Number formats of the products in a bundle of each precision."""

FORMS = ("fused", "unfused-windows", "unfused", "float")
"""Forms of attention from the fastest to the safest: fused everywhere; separate products in the
windows; separate products everywhere; rotary and attention in float32."""
UNTOUCHED = FORMS[0]
"""The form of a graph as it was converted."""


def check_capabilities(flavour: Flavour, names: Iterable[str], precision: str) -> None:
    """Make sure that every GPU generation can run a precision.

    Raises:
        SettingError: One is unknown, is no target of the flavour, or lacks a number format.
    """
    for name in names:
        capability = CAPABILITIES.get(name)
        if capability is None:
            known = ", ".join(f"{c.name} ({c.gpus})" for c in CAPABILITIES.values())
            raise SettingError(f"There is no compute capability '{name}'. Known: {known}.")
        formats = capability.formats_of(flavour)
        if not formats:
            raise SettingError(
                f"{flavour.title} does not run on compute capability {name} ({capability.gpus}). "
                f"Build with --target {TENSORRT.name} there."
            )
        missing = [f for f in FORMATS_OF_PRECISION[precision] if f not in formats]
        if missing:
            raise SettingError(_lacking(flavour, capability, precision, missing[0]))


def first_form(flavour: Flavour, version: Version, names: Iterable[str]) -> str:
    """Form of attention to begin with, one of ``FORMS``.

    Fused attention is silently wrong on compute capability 12.0 with TensorRT 10.13 to 10.16
    (NVIDIA/TensorRT#4837): there it is not worth a try.
    """
    broken = flavour is TENSORRT and (10, 13) <= version <= (10, 16)
    return "unfused" if broken and {"120", "121"} & set(names) else UNTOUCHED


def _lacking(flavour: Flavour, capability: Capability, precision: str, missing: str) -> str:
    able = [c for c in CAPABILITIES.values() if missing in c.formats_of(flavour)]
    allowed = [
        name
        for name, needed in FORMATS_OF_PRECISION.items()
        if set(needed) <= capability.formats_of(flavour)
    ]
    return (
        f"Compute capability {capability.name} ({capability.gpus}) has no {missing} in "
        f"{flavour.title}, which precision {precision} needs: that begins with {able[0].name} "
        f"({able[0].gpus}). For {capability.name} choose {', '.join(allowed)}."
    )
