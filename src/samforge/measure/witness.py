"""What parts really give while a segmenter is asked: finite or not, and before any threshold.

Detections hold what passed a threshold. A score that fell from 0.99 to 0.6, a presence that rose
where nothing is there, or NaN for a black picture shows in the parts' own outputs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from samforge.core.around import AroundSession
from samforge.core.errors import FidelityError
from samforge.core.session import (
    Array,
    DeviceSession,
    PartSpec,
    Session,
    TensorFormat,
    Tensors,
)

SATURATED = 20.0
"""Logits beyond this are taken for it: their scores differ from 0 or 1 by less than float32 can
tell. Presence is often beyond 10, where a shift of 2 moves no score yet."""
MOST_PLACES = 1024
"""Places of a feature map that are kept, with all of their channels."""

_PRESENCE, _LOGITS = "presence_logit", "pred_logits"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Reading:
    """What the detector says of one prompt, before any threshold."""

    image: int
    """Number of the image."""
    part: str
    """``detector`` or ``detector_boxes``."""
    presence: float
    """Logit of whether the phrase is in the image."""
    logits: npt.NDArray[np.float32]
    """(Q,), of every query."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Features:
    """Some of what another part gives in one call."""

    image: int
    """Number of the image."""
    part: str
    """The part."""
    tensor: str
    """Name of the output."""
    channels: npt.NDArray[np.float32]
    """(places, channels)."""


@dataclass(kw_only=True, slots=True)
class Witness:
    """What was seen of one segmenter, in the order of its calls."""

    readings: list[Reading] = field(default_factory=list)
    """One a prompt."""
    features: list[Features] = field(default_factory=list)
    """One an output of a part that detects nothing."""
    image: int = -1
    """Number of the image that is worked on; every run of a part that takes images is the next."""

    def sessions(self, sessions: Mapping[str, Session]) -> dict[str, Session]:
        """The same sessions, watched."""
        return {name: _watched(one, self) for name, one in sessions.items()}

    def saw(self, spec: PartSpec, outputs: dict[str, Array]) -> None:
        """Take what a part gave.

        Raises:
            FidelityError: A number is none, or infinite.
        """
        if any(tensor.name == "images" for tensor in spec.inputs):
            self.image += 1
        finite(spec.name, f"picture {max(self.image, 0)}", outputs)
        if _PRESENCE in outputs:
            self._read(spec.name, outputs)
        else:
            self.features += [
                Features(image=self.image, part=spec.name, tensor=name, channels=channels_of(array))
                for name, array in outputs.items()
                if array.dtype.kind == "f"
            ]

    def _read(self, part: str, outputs: Mapping[str, Array]) -> None:
        presence = outputs[_PRESENCE].reshape(-1)
        logits = outputs[_LOGITS].reshape(len(presence), -1).astype(np.float32)
        self.readings += [
            Reading(image=self.image, part=part, presence=float(one), logits=row.copy())
            for one, row in zip(presence, logits, strict=True)
        ]


def save_witness(path: Path, witness: Witness) -> None:
    """Keep what was seen, for another process to compare with."""
    named = {f"logits_{index}": one.logits for index, one in enumerate(witness.readings)}
    named |= {f"channels_{index}": one.channels for index, one in enumerate(witness.features)}
    readings = [(one.image, one.part, one.presence) for one in witness.readings]
    features = [(one.image, one.part, one.tensor) for one in witness.features]
    index = json.dumps({"image": witness.image, "readings": readings, "features": features})
    np.savez(path, index=np.array(index), **named)  # type: ignore[arg-type]  # one keyword only


def witness_from_file(path: Path) -> Witness:
    """Read what :func:`save_witness` kept."""
    with np.load(path, allow_pickle=False) as file:
        index = json.loads(str(file["index"]))
        return Witness(
            image=index["image"],
            readings=[
                Reading(image=image, part=part, presence=presence, logits=file[f"logits_{number}"])
                for number, (image, part, presence) in enumerate(index["readings"])
            ],
            features=[
                Features(image=image, part=part, tensor=name, channels=file[f"channels_{number}"])
                for number, (image, part, name) in enumerate(index["features"])
            ],
        )


def finite(part: str, picture: str, outputs: dict[str, Array]) -> dict[str, Array]:
    """Give outputs back when every number in them is one.

    Raises:
        FidelityError: A number is none, or infinite: no comparison is asked then.
    """
    for name, array in outputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            kind = "NaN" if np.isnan(array).any() else "infinity"
            raise FidelityError(
                f"The gate finite does not hold: {name} of {part} has {kind} for {picture}. Half "
                "precision may have overflowed. Nothing was published."
            )
    return outputs


def channels_of(array: Array) -> npt.NDArray[np.float32]:
    """Bring an output to (places, channels): maps have channels second, tokens last."""
    if array.ndim == 4:
        array = np.moveaxis(array, 1, -1)
    flat = array.reshape(-1, array.shape[-1])
    if len(flat) > MOST_PLACES:
        flat = flat[np.linspace(0, len(flat) - 1, MOST_PLACES).round().astype(np.int64)]
    return flat.astype(np.float32)


def saturated(logits: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Logits within the range in which they mean something."""
    return np.clip(np.asarray(logits, np.float64), -SATURATED, SATURATED)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Watched(AroundSession):
    """A session whose outputs are looked at."""

    session: Session
    witness: Witness

    def run(self, tensors: Tensors) -> dict[str, Array]:
        """Run the part, and look at what it gives."""
        outputs = self.session.run(tensors)
        self.witness.saw(self.spec, outputs)
        return outputs


@dataclass(frozen=True, kw_only=True, slots=True)
class _WatchedOnDevice(AroundSession):
    """The same of a session that takes tensors where they are."""

    session: DeviceSession
    witness: Witness
    captures: bool = False
    """Nothing can be looked at inside a CUDA graph."""

    @property
    def device(self) -> str:
        """Where its tensors live."""
        return self.session.device

    @property
    def formats(self) -> Mapping[str, TensorFormat]:
        """How it wants its inputs."""
        return self.session.formats

    def run(self, tensors: Tensors) -> dict[str, Array]:
        """Run the part on arrays, and look at what it gives."""
        outputs = self.session.run(tensors)
        self.witness.saw(self.spec, outputs)
        return outputs

    def run_on_device(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Run the part on the device, and look at what it gives."""
        from samforge.runtime.device.session import arrays_from

        outputs = self.session.run_on_device(tensors)
        self.witness.saw(self.spec, arrays_from(self.session, outputs))
        return outputs


def _watched(session: Session, witness: Witness) -> Session:
    if isinstance(session, DeviceSession):
        return _WatchedOnDevice(session=session, witness=witness)
    return _Watched(session=session, witness=witness)
