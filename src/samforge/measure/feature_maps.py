"""What parts give that detect nothing, against fp32's: direction of each map, gain of each channel.

A channel four times as large in one layer may move masks by little and still be wrong: all maps of
256 channels with one such channel keep a cosine of 0.98.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from samforge.core.errors import FidelityError
from samforge.measure.witness import Features, Witness

QUIET = 0.01
"""Share of the mean energy below which a channel is left out: its gain is rounding noise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Worst:
    """A figure and where it was reached."""

    value: float
    """The figure."""
    where: str
    """The tensor: ``fpn_1 of vision``."""


def paired_features(
    reference: Witness, measured: Witness
) -> Iterator[tuple[str, Features, Features]]:
    """Both maps of every call, with their name.

    Raises:
        FidelityError: The two were not asked the same.
    """
    named = [
        [(one.image, one.part, one.tensor, one.channels.shape) for one in each.features]
        for each in (reference, measured)
    ]
    if named[0] != named[1]:
        raise FidelityError("The parts were not run on the same pictures and phrases as fp32's.")
    for wanted, found in zip(reference.features, measured.features, strict=True):
        yield f"{found.tensor} of {found.part}", wanted, found


def worst_cosine(reference: Witness, measured: Witness, *, image: int | None = None) -> Worst:
    """The smallest cosine of a map with fp32's, of all pictures or of one; 1 without any."""
    found = (
        Worst(value=_cosine(wanted, one), where=name)
        for name, wanted, one in paired_features(reference, measured)
        if image is None or one.image == image
    )
    return min(found, key=lambda one: one.value, default=Worst(value=1.0, where=""))


def worst_gain(reference: Witness, measured: Witness) -> Worst:
    """The largest factor by which a channel grew or shrank over all pictures; 1 without any."""
    energy: dict[str, list[npt.NDArray[np.float64]]] = {}
    for name, wanted, found in paired_features(reference, measured):
        own = [np.square(one.channels.astype(np.float64)).sum(0) for one in (wanted, found)]
        before = energy.setdefault(name, [np.zeros_like(one) for one in own])
        energy[name] = [one + other for one, other in zip(before, own, strict=True)]
    worst = Worst(value=1.0, where="")
    for name, (wanted_energy, found_energy) in energy.items():
        loud = wanted_energy > QUIET * wanted_energy.mean()
        if not loud.any():
            continue
        with np.errstate(divide="ignore"):  # a channel that is gone shrank without end
            factors = np.exp(np.abs(np.log(found_energy[loud] / wanted_energy[loud])) / 2)
        if factors.max() > worst.value:
            channel = int(np.flatnonzero(loud)[factors.argmax()])
            worst = Worst(value=float(factors.max()), where=f"channel {channel} of {name}")
    return worst


def _cosine(wanted: Features, found: Features) -> float:
    first, second = (one.channels.astype(np.float64).ravel() for one in (wanted, found))
    size = float(np.sqrt((first @ first) * (second @ second)))
    return float(first @ second) / size if size else float(np.array_equal(first, second))
