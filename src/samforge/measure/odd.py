"""Pictures that hold nothing to find, such as black ones: compared before any threshold.

fp32 finds nothing in them, so no mask, box or score can tell. A graph that overflows, divides by
the deviation of a picture that has none, or clips what its calibration never saw shows in features,
logits and presence.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from samforge.measure.feature_maps import worst_cosine
from samforge.measure.gates import GATES, limit_of, within
from samforge.measure.sums import paired_readings
from samforge.measure.witness import Witness, saturated

if TYPE_CHECKING:
    from samforge.core.labelled import LabelledImage
    from samforge.core.recipe import Gates

ODD = ("odd_logit_shift", "odd_cosine")
"""Gates on such pictures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OddPicture:
    """One such picture."""

    name: str
    """What it is: ``black``."""
    odd_logit_shift: float
    """Mean difference of the logits of all queries and of presence, whichever is larger."""
    odd_cosine: float
    """Cosine of the features with fp32's, the worst of the maps."""
    worst: str
    """Which one that is."""


def odd_pictures(
    reference: Witness, measured: Witness, images: Iterable[LabelledImage]
) -> tuple[OddPicture, ...]:
    """Compare what both sides gave for each picture."""
    readings = list(paired_readings(reference, measured))
    rows = []
    for number, image in enumerate(images):
        own = [(one, other) for one, other in readings if other.image == number]
        presence = [abs(saturated(b.presence) - saturated(a.presence)) for a, b in own]
        logits = [np.abs(saturated(b.logits) - saturated(a.logits)).mean() for a, b in own]
        worst = worst_cosine(reference, measured, image=number)
        rows.append(
            OddPicture(
                name=image.name,
                odd_logit_shift=float(max(np.mean(presence), np.mean(logits))),
                odd_cosine=worst.value,
                worst=worst.where,
            )
        )
    return tuple(rows)


def failed_odd(pictures: Iterable[OddPicture], precision: str, gates: Gates) -> tuple[str, ...]:
    """Say which pictures with nothing to find are not answered alike, gate by gate."""
    return tuple(
        f"{gate}: {GATES[gate].words} is {reached:.4f} for a picture that is {one.name}"
        f"{f' ({one.worst})' if gate == 'odd_cosine' else ''}, the gate is {limit:g}"
        for one in pictures
        for gate in ODD
        for reached, limit in [(getattr(one, gate), limit_of(gate, precision, gates))]
        if not within(gate, reached, limit)
    )


def odd_limits(precision: str, gates: Gates) -> dict[str, float]:
    """The limit of each gate on such pictures."""
    return {gate: limit_of(gate, precision, gates) for gate in ODD}
