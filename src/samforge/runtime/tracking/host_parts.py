"""Parts of a tracker behind sessions that take and give arrays of the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from samforge.core.axes import MEMORIES, MOST_OBJECTS, OBJECTS, POINTERS, POINTS
from samforge.core.capabilities import POINT_DECODER
from samforge.core.errors import SettingError
from samforge.core.masks import Masks
from samforge.core.reference import META
from samforge.core.session import Session, fixed_axis, largest_of
from samforge.runtime.encoded import EncodedImage
from samforge.runtime.pending import Pending
from samforge.runtime.tracking.drawn import drawn_masks, require_finite
from samforge.runtime.tracking.given import given_logits, masks_to_give
from samforge.runtime.tracking.parts import TRACKING_PARTS, Array, FoundInFrame, TrackerFacts
from samforge.runtime.tracking.stacks import HostMasks, MaskStack

Encode: TypeAlias = Callable[[Any], EncodedImage]
Detect: TypeAlias = Callable[[EncodedImage, tuple[str, ...], Sequence[float]], FoundInFrame]

_MEMORY_SCALE = 4
"""Masks that memories are made of are so many times finer than those that decoders give."""


class PartsOfSessions:
    """What all :class:`TrackerParts` over sessions share."""

    def __init__(self, facts: TrackerFacts, *, encode: Encode) -> None:
        """Answer what is no part of the tracker.

        Args:
            facts: Of the sessions, from :func:`facts_from_sessions`.
            encode: Takes a frame to its features.
        """
        self._facts, self._encode = facts, encode

    @property
    def facts(self) -> TrackerFacts:
        """Sizes, limits, and which bundle this is."""
        return self._facts

    def encode(self, image: Any) -> EncodedImage:
        """Run the vision part on one frame."""
        return self._encode(image)


class OnHost:
    """What all :class:`TrackerParts` share whose arrays lie on the host."""

    @property
    def facts(self) -> TrackerFacts:
        """Sizes, limits, and which bundle this is."""
        raise NotImplementedError

    def to_host(self, array: Any) -> Array:
        """They are there."""
        return np.asarray(array)

    def begin_to_host(self, arrays: Mapping[str, Any]) -> Pending[dict[str, Array]]:
        """They are there."""
        return Pending.of({name: np.asarray(array) for name, array in arrays.items()})

    def masks(self, logits: Any) -> MaskStack:
        """Masks in an array of the host."""
        return HostMasks(np.asarray(logits, np.float32))

    def begin_draw(self, masks: MaskStack, size_hw: tuple[int, int]) -> Pending[Masks]:
        """Draw masks at the frame's size."""
        require_finite(bool(masks.outline.finite.all()))
        return Pending.of(drawn_masks(masks.values, size_hw))

    def give(self, masks: MaskStack, size_hw: tuple[int, int]) -> tuple[Any, MaskStack]:
        """Take masks of detections as masks that are given to the tracker."""
        given = masks_to_give(masks.values, self.facts)
        return given, HostMasks(given_logits(given, self.facts, size_hw))


class HostTrackerParts(PartsOfSessions, OnHost):
    """Sessions that take and give arrays of the host."""

    def __init__(
        self,
        sessions: Mapping[str, Session],
        facts: TrackerFacts,
        *,
        encode: Encode,
        detect: Detect,
        rounds: bool = True,
    ) -> None:
        """Use what runs the parts.

        Args:
            sessions: By name.
            facts: Of these sessions.
            encode: Takes a frame to its features.
            detect: Finds phrases in it.
            rounds: Whether memories are kept as bfloat16, as Meta keeps them, in half the room.
        """
        super().__init__(facts, encode=encode)
        self._sessions, self._detect, self._rounds = dict(sessions), detect, rounds

    def begin_detect(
        self, encoded: EncodedImage, phrases: tuple[str, ...], thresholds: Sequence[float]
    ) -> Pending[FoundInFrame]:
        """Find what all phrases name in a frame, once it is asked for: nothing runs beside it."""
        return Pending(lambda: self._detect(encoded, phrases, thresholds))

    def run(self, part: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run a part."""
        return dict(self._sessions[part].run(inputs))

    def keep(self, memory: Any) -> list[Any]:
        """Split memories (N, L, C) into those of single objects, as bits of bfloat16 if rounded."""
        return [bfloat16_bits(one) if self._rounds else one.copy() for one in memory]

    def recall(self, kept: Sequence[Sequence[Any]]) -> Any:
        """Join memories, N objects of M each, as (N, M, L, C) of float32."""
        joined = np.stack([np.stack(row) for row in kept])
        return floats_from_bfloat16(joined) if self._rounds else joined

    def saved(self, kept: Any) -> Array:
        """One kept memory as it is."""
        return np.asarray(kept)

    def restored(self, array: Array) -> Any:
        """The kept memory that was saved."""
        return array


def bfloat16_bits(floats: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round float32 to bfloat16, to the nearest and of two the even one; NaN stays NaN."""
    bits = np.ascontiguousarray(floats).view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)) >> 16
    # A NaN whose low bits alone tell it would round to infinity, or past the sign.
    quiet = (bits >> 16) | 0x40
    return np.where(np.isnan(floats), quiet, rounded).astype(np.uint16)


def floats_from_bfloat16(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """The numbers of bits of bfloat16, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def facts_from_sessions(
    sessions: Mapping[str, Session],
    needs: Sequence[str] = TRACKING_PARTS,
    *,
    image_size: int,
    digest: str,
    device: str = "cpu",
    reference: str = META,
) -> TrackerFacts:
    """Sizes and limits of the tracker's parts.

    Args:
        sessions: By name.
        needs: Parts that are going to be run, ``point_decoder`` among them.
        image_size: Side of the square that frames are squashed to, pixels.
        digest: Of the bundle.
        device: Where features of frames lie.
        reference: Whose tracker the parts compute.

    Raises:
        SettingError: A part that is needed is missing.
    """
    missing = [name for name in needs if name not in sessions]
    if missing:
        raise SettingError(
            f"Clicks and tracking need the parts {', '.join(needs)}; {', '.join(missing)} are "
            "missing. Build the bundle again with its tracker (--tracker)."
        )
    mask_side = _side(sessions[POINT_DECODER], "mask_input")
    memory_side = mask_side * _MEMORY_SCALE

    def most(axis: str) -> int | None:
        sizes = [largest_of(sessions[name], axis) for name in TRACKING_PARTS if name in sessions]
        return min((size for size in sizes if size is not None), default=None)

    return TrackerFacts(
        image_size=image_size,
        mask_side=mask_side,
        prompt_side=memory_side if reference == META else image_size,
        memory_side=memory_side,
        digest=digest,
        device=device,
        reference=reference,
        most_objects=min(MOST_OBJECTS, most(OBJECTS.name) or MOST_OBJECTS),
        most_memories=most(MEMORIES.name),
        most_pointers=most(POINTERS.name),
        most_points=most(POINTS.name) or POINTS.most,
    )


def _side(session: Session, name: str) -> int:
    side = fixed_axis(session.spec, name, -1)
    if side is None:
        raise SettingError(
            f"{session.spec.name} does not say how large its {name} is. Build the bundle again."
        )
    return side
