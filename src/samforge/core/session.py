"""What runs one part on one runtime: named tensors in, named tensors out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from samforge.core.computation import Computation
from samforge.core.errors import DamagedBundle, SettingError, ShapeError

Array: TypeAlias = npt.NDArray[Any]
Tensors: TypeAlias = Mapping[str, Array]


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """Name, type and shape of one input or output of a part."""

    name: str
    """Name in the graph, the same in every artifact of the part."""
    dtype: str
    """numpy name of the element type: ``float32``, ``int64``, ``bool``."""
    shape: tuple[int | str, ...]
    """Fixed axes as integers, dynamic ones by name (``batch``, ``prompts``, ``boxes``)."""

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype} ({', '.join(str(axis) for axis in self.shape)})"


@dataclass(frozen=True, kw_only=True, slots=True)
class PartSpec:
    """The interface of one part, the same whatever runs it."""

    name: str
    """``vision``, ``text``, ``detector``, …"""
    inputs: tuple[TensorSpec, ...]
    """In the order of the part's arguments."""
    outputs: tuple[TensorSpec, ...]
    """In the order of the part's results."""


@runtime_checkable
class Session(Protocol):
    """Runs one part on one runtime."""

    @property
    def spec(self) -> PartSpec:
        """Interface of the part this session runs."""
        ...

    @property
    def runtime(self) -> str:
        """Name of the backend, for example ``onnxruntime``."""
        ...

    @property
    def processor(self) -> str:
        """Where it runs, in words: ``CPU, 2 threads`` or ``NVIDIA L4 (cuda:0)``."""
        ...

    def run(self, tensors: Tensors) -> dict[str, Array]:
        """Run the part once.

        Args:
            tensors: One array for every input of ``spec``, by name.

        Returns:
            One array for every output of ``spec``, by name.

        Raises:
            ShapeError: A name, type or shape differs from ``spec``.
        """
        ...

    def close(self) -> None:
        """Free the weights. The session cannot run afterwards."""
        ...


@runtime_checkable
class InspectableSession(Session, Protocol):
    """A session that can tell what it computes in which number format."""

    def computation(self) -> Computation | None:
        """Matrix products, convolutions and fused attentions; None where it cannot tell."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorFormat:
    """How a device session wants one input in memory."""

    dtype: str
    """``float32``, ``float16``, ``bfloat16``, …: what was built may take fewer bits than the part's
    interface says."""
    channels_last: bool = False
    """Whether channels come last in memory; row by row otherwise."""


@runtime_checkable
class DeviceSession(Session, Protocol):
    """A session that also takes tensors where they are: nothing passes through the host."""

    @property
    def device(self) -> str:
        """Where its tensors live: ``cuda:0``, ``cpu``."""
        ...

    @property
    def formats(self) -> Mapping[str, TensorFormat]:
        """How it wants every input."""
        ...

    @property
    def captures(self) -> bool:
        """Whether a call may be captured in a CUDA graph of the caller's."""
        ...

    def run_on_device(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Run the part once on tensors of ``device``; the call may return before it is done.

        Args:
            tensors: One for every input, in its format, from any library that speaks DLPack. What
                the caller has queued for them on the device's current stream comes first.

        Returns:
            New tensors by output, which speak DLPack or CUDA's array interface. What the caller
            queues afterwards on that stream sees them.

        Raises:
            ShapeError: A name, type, shape, device or memory format differs.
            OutOfMemory: The device has no room for so large a batch.
        """
        ...


@runtime_checkable
class BoundedSession(Session, Protocol):
    """A session that was built for sizes up to some largest."""

    @property
    def largest(self) -> Mapping[str, int]:
        """Largest size of its dynamic axes."""
        ...


def largest_of(session: Session, axis: str) -> int | None:
    """Largest size of an axis that a session takes; None for any."""
    return session.largest.get(axis) if isinstance(session, BoundedSession) else None


def fixed_axis(spec: PartSpec, name: str, axis: int) -> int | None:
    """Size of an axis of a tensor; None where it is dynamic.

    Raises:
        ShapeError: The part has no such tensor.
    """
    for tensor in (*spec.inputs, *spec.outputs):
        if tensor.name == name:
            size = tensor.shape[axis]
            return size if isinstance(size, int) else None
    raise ShapeError(f"The part {spec.name} has no tensor {name}. Build the bundle again.")


class Backend(Protocol):
    """Turns the artifact of a part into a session. One file in ``samforge.backends`` each."""

    name: str
    """As in ``--target``."""

    def version(self) -> str | None:
        """Version of the installed runtime, or None when it is not usable here."""
        ...

    def processors(self, runtime: Any) -> tuple[str, ...]:
        """What the runtime can run on, in its own words.

        Args:
            runtime: Its imported module.
        """
        ...

    def facts_from_artifact(self, path: Path) -> str | None:
        """What an artifact says of itself, without loading it; see :mod:`samforge.core.facts`.

        Returns:
            The stamp as it stands in the file, or None where there is none.
        """
        ...

    def session_from_artifact(
        self,
        path: Path,
        spec: PartSpec,
        *,
        threads: int | None = None,
        device: str | None = None,
        options: Mapping[str, str] | None = None,
    ) -> Session:
        """Load one artifact.

        Args:
            path: The part's main file; side files lie next to it.
            spec: Interface that the artifact must have.
            threads: Processor threads to use, or None for the runtime's own choice.
            device: ``cpu`` or ``cuda:1``; None takes what the artifact was built for, of several
                GPUs the first.
            options: Settings of this runtime by name, as a bundle's manifest keeps them. A backend
                lists those it knows, and refuses others.
        """
        ...


def checked_options(
    backend: str, options: Mapping[str, str] | None, allowed: Mapping[str, tuple[str, ...]]
) -> dict[str, str]:
    """Check the settings handed to a backend.

    Args:
        backend: Its name, for the message.
        options: What came.
        allowed: Values of each option; an empty tuple takes any text.

    Raises:
        SettingError: A name or a value is not among the allowed.
    """
    found = dict(options or {})
    for name, value in found.items():
        if name not in allowed:
            known = f"Options: {', '.join(allowed)}." if allowed else "It has none."
            raise SettingError(f"{backend} has no option '{name}'. {known}")
        if allowed[name] and value not in allowed[name]:
            raise SettingError(
                f"{backend} takes {name}={' or '.join(allowed[name])}, got '{value}'."
            )
    return found


MOST_THREADS = 1024
"""Threads that a session is given at most: runtimes start them all at once."""


def checked_threads(threads: int | None) -> int | None:
    """Make sure that a number of processor threads is one.

    Raises:
        SettingError: It is no whole number from 1 to :data:`MOST_THREADS`.
    """
    whole = isinstance(threads, int) and not isinstance(threads, bool)
    if threads is not None and not (whole and 1 <= threads <= MOST_THREADS):
        raise SettingError(
            f"threads is {threads!r}. Give a whole number from 1 to {MOST_THREADS}, or None for "
            "the runtime's own choice."
        )
    return threads


def checked_tensors(spec: PartSpec, tensors: Tensors) -> dict[str, Array]:
    """Check names, types and shapes of a session's inputs against its part's interface.

    Dynamic axes may have any size from 1, but one name has one size throughout the call.

    Raises:
        ShapeError: With the expected and the actual shape.
    """
    expected = {tensor.name for tensor in spec.inputs}
    if set(tensors) != expected:
        raise ShapeError(f"{spec.name} wants the inputs {sorted(expected)}, got {sorted(tensors)}.")
    sizes: dict[str, int] = {}
    for tensor in spec.inputs:
        array = tensors[tensor.name]
        if array.dtype != np.dtype(tensor.dtype):
            raise ShapeError(
                f"{spec.name} wants {tensor}, got {array.dtype}. "
                f"Convert it first: array.astype('{tensor.dtype}')."
            )
        fits = len(array.shape) == len(tensor.shape) and all(
            axis >= 1 and axis == (sizes.setdefault(want, axis) if isinstance(want, str) else want)
            for axis, want in zip(array.shape, tensor.shape, strict=False)
        )
        if not fits:
            shape = tuple(sizes.get(a, a) if isinstance(a, str) else a for a in tensor.shape)
            raise ShapeError(
                f"{spec.name} wants {tensor.name} of shape {shape}, got {array.shape}."
            )
    return {tensor.name: tensors[tensor.name] for tensor in spec.inputs}


def check_artifact(
    path: Path | str, spec: PartSpec, inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec]
) -> None:
    """Compare what an artifact takes and gives with its part's interface.

    Names, types and fixed axes must agree; an axis that the file leaves open fits any.

    Args:
        path: The file, for the message.
        spec: The interface it must have.
        inputs: What the file takes, in any order.
        outputs: What the file gives.

    Raises:
        DamagedBundle: They differ.
    """
    for wanted, found in ((spec.inputs, inputs), (spec.outputs, outputs)):
        expected = sorted(wanted, key=lambda tensor: tensor.name)
        actual = sorted(found, key=lambda tensor: tensor.name)
        if len(expected) != len(actual) or not all(map(_fits, actual, expected)):
            raise DamagedBundle(
                f"{path} has the tensors {'; '.join(map(str, actual))}, and the manifest says "
                f"{'; '.join(map(str, expected))}. Build it again."
            )


def _fits(found: TensorSpec, wanted: TensorSpec) -> bool:
    return (
        (found.name, found.dtype, len(found.shape))
        == (wanted.name, wanted.dtype, len(wanted.shape))
    ) and all(
        isinstance(axis, str) or axis == other
        for axis, other in zip(found.shape, wanted.shape, strict=True)
    )
