"""Where a bundle can be built to run: all that differs between targets, one entry each.

A new target is an entry here and a file in ``samforge.backends`` that passes the conformance suite.
Whoever needs to know something of a target asks its entry; nobody compares names, and an unknown
name is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from samforge.core.errors import SettingError
from samforge.core.structure import unknown_names

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8", "int8-weights")
"""Number formats a bundle can be built in."""

QUANTIZED = ("int8", "fp8")
"""Precisions whose activations are quantized: they need calibration."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """One place to run: a runtime, and what bundles for it are made of."""

    name: str
    """As in ``--target``."""
    backend: str
    """Module whose ``BACKEND`` turns artifacts into sessions."""
    suffix: str
    """Of its artifacts, without the first dot."""
    forms: Mapping[str, str]
    """What graphs become in each precision it takes, by name in ``samforge.steps.flavours``."""
    steps: tuple[str, ...]
    """What follows the fusion of a part, besides quantization, by name in ``samforge.steps.plan``;
    empty where the program itself runs."""
    checked_by: str
    """Target whose runtime runs what the first of the steps makes, to compare it with the part."""
    module: str
    """Import name of the runtime."""
    distributions: tuple[str, ...]
    """Packages that bring the module, one for each of its forms: versions decide what is made."""
    extra: str | None
    """The extra of pyproject that installs it, or None when the base install has it."""
    devices: tuple[str, ...] = ("cpu",)
    """Of ``cpu`` and ``cuda``, what it can run on."""
    elsewhere: bool = False
    """Whether bundles may run on another machine than the one that built them, and so carry a
    proof along."""
    engine: bool = False
    """Whether its own compiler makes an engine of the graph: it has a largest size for each axis,
    and merges linears and constants by itself."""
    kernels: str | None = None
    """How the kernels that run are read back, by name in ``samforge.steps.convert``."""
    arithmetic: bool = False
    """Whether what it computes in is chosen when a graph is loaded."""
    tried: tuple[str, ...] = ()
    """Precisions that are tried where the fastest for a processor is looked for."""

    @property
    def through_onnx(self) -> bool:
        """Whether it is made from an ONNX graph, whose attention is written out."""
        return "onnx" in self.steps

    @property
    def lowered(self) -> bool:
        """Whether programs are lowered to it, from float programs and scales."""
        return "compile" in self.steps


_ENGINE = dict.fromkeys(("fp32", "fp16", "int8", "fp8"), "tensorrt graph")

ONNXRUNTIME = Target(
    name="onnxruntime",
    backend="samforge.backends.onnxruntime.cpu",
    suffix="onnx",
    forms={
        "fp32": "plain",
        "fp16": "half",
        "int8": "u8s8",
        "fp8": "e4m3",
        "int8-weights": "weights",
    },
    steps=("onnx",),
    checked_by="onnxruntime",
    module="onnxruntime",
    distributions=("onnxruntime", "onnxruntime-gpu"),
    extra=None,
    kernels="optimized graph",
    tried=("int8", "fp32"),
)
ONNXRUNTIME_CUDA = Target(
    name="onnxruntime-cuda",
    backend="samforge.backends.onnxruntime.cuda",
    suffix="onnx",
    forms=dict.fromkeys(("fp32", "fp16"), "cuda graph"),
    steps=("onnx",),
    checked_by="onnxruntime",
    module="onnxruntime",
    distributions=("onnxruntime-gpu",),
    extra="onnxruntime-cuda",
    devices=("cuda",),
    elsewhere=True,
)
OPENVINO = Target(
    name="openvino",
    backend="samforge.backends.openvino",
    suffix="onnx",
    forms=dict.fromkeys(("fp32", "bf16", "int8"), "openvino graph") | {"int8-weights": "weights"},
    steps=("onnx",),
    checked_by="openvino",
    module="openvino",
    distributions=("openvino",),
    extra="openvino",
    kernels="layers",
    arithmetic=True,
    tried=("bf16", "int8", "fp32"),
)
TENSORRT = Target(
    name="tensorrt",
    backend="samforge.backends.tensorrt.proper",
    suffix="engine",
    forms=_ENGINE,
    steps=("onnx", "engine"),
    checked_by="onnxruntime",
    module="tensorrt",
    distributions=("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    extra="tensorrt",
    devices=("cuda",),
    elsewhere=True,
    engine=True,
)
TENSORRT_RTX = Target(
    name="tensorrt-rtx",
    backend="samforge.backends.tensorrt.rtx",
    suffix="engine",
    forms=_ENGINE,
    steps=("onnx", "engine"),
    checked_by="onnxruntime",
    module="tensorrt_rtx",
    distributions=("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx"),
    extra="tensorrt-rtx",
    devices=("cuda",),
    elsewhere=True,
    engine=True,
)
INDUCTOR = Target(
    name="inductor",
    backend="samforge.backends.inductor.backend",
    suffix="aoti.pt2",
    forms=dict.fromkeys(("fp32", "bf16", "fp16", "fp8"), "lowered"),
    steps=("compile",),
    checked_by="inductor",
    module="torch",
    distributions=("torch", "triton"),
    extra="build",
    devices=("cuda", "cpu"),
    elsewhere=True,
)
TORCH = Target(
    name="torch",
    backend="samforge.backends.torch",
    suffix="pt2",
    forms=dict.fromkeys(("fp32", "int8", "fp8"), "program"),
    steps=(),
    checked_by="torch",
    module="torch",
    distributions=("torch",),
    extra="build",
)

TARGETS = {
    one.name: one
    for one in (
        ONNXRUNTIME,
        OPENVINO,
        TENSORRT,
        TENSORRT_RTX,
        ONNXRUNTIME_CUDA,
        INDUCTOR,
        TORCH,
    )
}
"""Every target by name; the first is the default."""
TARGET_NAMES = tuple(TARGETS)
"""The names alone."""
STOPS = {"export": TORCH, "onnx": ONNXRUNTIME}
"""What ``until`` stops after, and the target that runs what is there by then."""


def target_from_name(name: str) -> Target:
    """Find a target.

    Raises:
        SettingError: There is none of this name.
    """
    if problem := unknown_names([name], TARGET_NAMES):
        raise SettingError(f"target is {problem}.")
    return TARGETS[name]


def stop_of(target: Target, precision: str, until: str | None) -> Target:
    """What runs the result of a build that stops early.

    Args:
        target: Of the recipe.
        precision: Of the recipe.
        until: One of ``STOPS``, or None for a whole build, as is a stop after the last step.

    Raises:
        SettingError: The target's builds do not pass there, or what is there by then cannot run.
    """
    if until is None or until in target.steps[-1:]:
        return target
    allowed = [stop for stop in STOPS if stop == "export" or stop in target.steps]
    if until not in allowed:
        raise SettingError(
            f"until is '{until}'; target {target.name} can stop at: {', '.join(allowed)}."
        )
    runs = STOPS[until]
    # What is exported is the float program, whatever is asked for behind it.
    if until != "export" and precision not in runs.forms:
        raise SettingError(
            f"until is '{until}', and {runs.name}, which would run it, takes "
            f"{', '.join(runs.forms)}, not {precision}. Choose one of these, or build to the end."
        )
    return runs
