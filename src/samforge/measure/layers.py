"""How much noise is behind each layer: where a quantized part loses what it loses."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from samforge.core.errors import SettingError, ShapeError
from samforge.core.session import Array
from samforge.measure.fidelity import decibel

_CHUNK = 1 << 20  # values at a time: float64 copies stay small beside the tensors themselves


def layer_sqnr(pairs: Iterable[tuple[str, Array, Array]]) -> dict[str, float]:
    """Sum signal and noise up by layer.

    Args:
        pairs: Layer, what the reference gives there, and what is compared with it; a layer comes
            once a sample. A generator is gone through once, so only one pair is in memory.

    Returns:
        Signal to noise ratio in dB by layer, in the order of first appearance: infinite where all
        samples are equal, minus infinite where a value is not finite.

    Raises:
        SettingError: There is no pair.
        ShapeError: The two of a pair differ in shape.
    """
    signal: dict[str, float] = {}
    noise: dict[str, float] = {}
    for name, reference, actual in pairs:
        if reference.shape != actual.shape:
            raise ShapeError(
                f"{name} gives {actual.shape}, its reference {reference.shape}. "
                "Compare programs of one part on the same inputs."
            )
        own_signal, own_noise = _energies(reference.ravel(), actual.ravel())
        signal[name] = signal.get(name, 0.0) + own_signal
        noise[name] = noise.get(name, 0.0) + own_noise
    if not signal:
        raise SettingError("Noise by layer needs at least one pair of tensors, got none.")
    return {name: decibel(signal[name], noise[name]) for name in signal}


def worst_layers(figures: dict[str, float], count: int = 5) -> str:
    """Name the layers with the most noise, for messages: ``fc1 (12.3 dB), fc2 (15.0 dB)``."""
    worst = sorted(figures, key=lambda name: figures[name])[:count]
    return ", ".join(f"{name} ({figures[name]:.1f} dB)" for name in worst)


def _energies(
    reference: npt.NDArray[np.generic], actual: npt.NDArray[np.generic]
) -> tuple[float, float]:
    signal = noise = 0.0
    for start in range(0, reference.size, _CHUNK):
        wanted = reference[start : start + _CHUNK].astype(np.float64)
        error = actual[start : start + _CHUNK].astype(np.float64) - wanted
        signal += float(wanted @ wanted)
        noise += float(error @ error)
    return (signal, noise) if math.isfinite(signal + noise) else (0.0, math.inf)
