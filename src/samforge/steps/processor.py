"""Which target and precision a processor is fastest with: measured here, in seconds."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from samforge.backends import backend_from_name
from samforge.core.recipe import Recipe
from samforge.core.session import Session
from samforge.core.targets import TARGET_NAMES, TARGETS, target_from_name
from samforge.steps.flavours import flavoured
from samforge.steps.options import options_of
from samforge.transform.onnx.convert import save_onnx
from samforge.transform.onnx.probe import SPEC, TOKENS, WIDTH, probe_block

CANDIDATES = tuple((name, one) for name, target in TARGETS.items() for one in target.tried)
"""What bundles for processors are built for."""
ROUNDS = 7


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One target and precision on this processor."""

    target: str
    """Runtime."""
    precision: str
    """Number format."""
    block_ms: float
    """Smallest time of one transformer block over a window of 576 tokens."""
    speed_up: float
    """Over ONNX Runtime in fp32, in the same run."""


def processor_choices() -> tuple[Choice, ...]:
    """Measure one transformer block of SAM 3's size in every way that is installed.

    Weights are random, so this tells speed alone: whether a precision is good enough for a model
    is for the gates of its build to say.

    Returns:
        The fastest first.
    """
    usable = [one for one in CANDIDATES if backend_from_name(one[0]).version() is not None]
    tokens = {"tokens": np.random.default_rng(1).standard_normal((1, TOKENS, WIDTH), np.float32)}
    with tempfile.TemporaryDirectory() as folder:
        sessions = {one: _session(Path(folder), *one) for one in usable}
        times: dict[tuple[str, str], list[float]] = {one: [] for one in usable}
        for _ in range(ROUNDS):
            for one, session in sessions.items():
                start = time.perf_counter()
                session.run(tokens)
                times[one].append(1000 * (time.perf_counter() - start))
        for session in sessions.values():
            session.close()
    return _ranked({one: min(measured[1:]) for one, measured in times.items()})


def _ranked(best: dict[tuple[str, str], float]) -> tuple[Choice, ...]:
    base = best[TARGET_NAMES[0], "fp32"]
    choices: Sequence[Choice] = [
        Choice(target=target, precision=precision, block_ms=ms, speed_up=base / ms)
        for (target, precision), ms in best.items()
    ]
    return tuple(sorted(choices, key=lambda choice: choice.block_ms))


def _session(folder: Path, target: str, precision: str) -> Session:
    recipe = Recipe(target=target, precision=precision)
    model = flavoured(probe_block(quantized=precision == "int8"), recipe)
    path = folder / f"{target}-{precision}.onnx"
    save_onnx(model, path)
    return backend_from_name(target).session_from_artifact(
        path, SPEC, options=options_of(recipe, target_from_name(target))
    )
