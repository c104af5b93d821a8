"""The command that builds the same engine without samforge."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from samforge.backends.tensorrt.library import RTX, Library
from samforge.backends.tensorrt.settings import EngineSettings
from samforge.backends.tensorrt.shapes import InputShapes, Shape


def command_line(
    library: Library,
    onnx: Path,
    engine: Path,
    shapes: Mapping[str, InputShapes],
    settings: EngineSettings,
) -> str:
    """Write the line of ``trtexec`` or ``tensorrt_rtx`` that equals our build."""
    words = [library.flavour.tool, f"--onnx={onnx}", f"--saveEngine={engine}"]
    words += library.command_flags
    for option in ("min", "opt", "max"):
        if shapes:
            pairs = [f"{name}:{_by(getattr(one, option))}" for name, one in shapes.items()]
            words.append(f"--{option}Shapes={','.join(pairs)}")
    if library.flavour is RTX and settings.compute_capabilities:
        words.append(f"--computeCapabilities={','.join(settings.compute_capabilities)}")
    if settings.precision == "fp32":
        words.append("--noTF32")
    if settings.workspace_gib is not None:
        words.append(f"--memPoolSize=workspace:{round(settings.workspace_gib * 1024)}")
    if settings.optimization_level is not None:
        words.append(f"--builderOptimizationLevel={settings.optimization_level}")
    if settings.timing_cache is not None:
        words.append(f"--timingCacheFile={settings.timing_cache}")
    return shlex.join([*words, "--profilingVerbosity=detailed", "--skipInference"])


def _by(shape: Shape) -> str:
    return "x".join(map(str, shape))
