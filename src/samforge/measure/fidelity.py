"""How close a tensor is to the one it should equal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from samforge.core.errors import ShapeError
from samforge.core.session import Array, Tensors


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorFidelity:
    """Comparison of one output tensor with its reference."""

    tensor: str
    """Name of the output."""
    max_abs: float
    """Largest absolute difference; infinite where either side is not a number."""
    scale: float
    """Largest absolute value of the reference that is finite."""
    cosine: float
    """Cosine of the angle between the two, 1 when they are parallel."""
    sqnr_db: float
    """Signal to noise ratio in dB, infinite when they are equal."""
    std_ratio: float
    """Standard deviation over the reference's."""

    @property
    def gated(self) -> float:
        """What a gate limits: the largest difference, relative where values exceed 1.

        Mask logits reach tens; float32 has no absolute 1e-5 to give there.
        """
        return self.max_abs / max(1.0, self.scale)  # the scale is finite: inf stays inf

    def to_dict(self) -> dict[str, str | float]:
        """Every figure by name."""
        return {**asdict(self), "gated": self.gated}


def compare_tensor(name: str, reference: Array, actual: Array) -> TensorFidelity:
    """Compare one tensor with its reference.

    Raises:
        ShapeError: The two differ in shape.
    """
    if reference.shape != actual.shape:
        raise ShapeError(f"{name} has shape {actual.shape}, its reference {reference.shape}.")
    wanted = reference.astype(np.float64, copy=False).ravel()
    found = actual.astype(np.float64, copy=False).ravel()
    finite = np.isfinite(wanted)
    scale = float(np.abs(wanted[finite]).max(initial=0.0))
    if not (finite & np.isfinite(found)).all():
        return TensorFidelity(
            tensor=name,
            max_abs=math.inf,
            scale=scale,
            cosine=0.0,
            sqnr_db=-math.inf,
            std_ratio=0.0,
        )
    error = found - wanted
    signal, noise = float(wanted @ wanted), float(error @ error)
    product = math.sqrt(signal * float(found @ found))
    deviation, found_deviation = _deviation(wanted), _deviation(found)
    return TensorFidelity(
        tensor=name,
        max_abs=float(np.abs(error).max(initial=0.0)),
        scale=scale,
        cosine=float(wanted @ found) / product if product else float(noise == 0.0),
        sqnr_db=decibel(signal, noise),
        std_ratio=found_deviation / deviation if deviation else float(not found_deviation),
    )


def compare_outputs(reference: Tensors, actual: Tensors) -> tuple[TensorFidelity, ...]:
    """Compare every output of a part with its reference, by name.

    Raises:
        ShapeError: Names or shapes differ.
    """
    if set(reference) != set(actual):
        raise ShapeError(f"Outputs {sorted(actual)} are not the reference's {sorted(reference)}.")
    return tuple(compare_tensor(name, reference[name], actual[name]) for name in reference)


def worst(figures: tuple[TensorFidelity, ...]) -> TensorFidelity:
    """The tensor farthest from its reference."""
    return max(figures, key=lambda figure: figure.gated)


def _deviation(values: Array) -> float:
    return float(values.std()) if values.size else 0.0


def decibel(signal: float, noise: float) -> float:
    """Signal to noise ratio in dB from the two energies; infinite without noise."""
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal else -math.inf


def rows(figures: Mapping[str, tuple[TensorFidelity, ...]]) -> tuple[dict[str, str | float], ...]:
    """Figures of several input sizes as flat rows for a manifest.

    Args:
        figures: By the sizes they were measured at, in words.
    """
    return tuple(
        {"sizes": sizes, **figure.to_dict()} for sizes, group in figures.items() for figure in group
    )
