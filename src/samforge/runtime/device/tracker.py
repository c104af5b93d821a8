"""Runs the tracker's parts on a device: features, memories and masks stay there between calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from samforge.core.masks import Masks
from samforge.core.reference import META
from samforge.core.session import DeviceSession
from samforge.runtime.device.masks import masks_to_host
from samforge.runtime.device.places import places_from_reach
from samforge.runtime.device.reach import NOTHING
from samforge.runtime.device.session import placed, run
from samforge.runtime.device.stacks import DeviceMasks, Ground, Here
from samforge.runtime.device.transfer import begin_to_host, to_device, to_host
from samforge.runtime.encoded import EncodedImage
from samforge.runtime.pending import Pending
from samforge.runtime.postprocess import MaskLimit
from samforge.runtime.tracking.drawn import require_finite
from samforge.runtime.tracking.given import FAR, NEAR
from samforge.runtime.tracking.host_parts import Encode, PartsOfSessions
from samforge.runtime.tracking.parts import Array, FoundInFrame, TrackerFacts
from samforge.runtime.tracking.stacks import MaskStack

_AT_ONCE = 8
"""Masks enlarged in one go: at 1080p they take 66 MB, and as much again for each pass."""
_INSIDE = MaskLimit(value=0.0, of_probabilities=False)
BeginDetect: TypeAlias = Callable[
    [EncodedImage, tuple[str, ...], Sequence[float], Ground], Pending[FoundInFrame]
]
"""Begins to find phrases in a frame, on the ground of the tracker's masks."""


class DeviceTrackerParts(PartsOfSessions):
    """Sessions that take tensors where they are, all on one device."""

    def __init__(
        self,
        sessions: Mapping[str, DeviceSession],
        facts: TrackerFacts,
        *,
        here: Here,
        encode: Encode,
        detect: BeginDetect,
    ) -> None:
        """Use what runs the parts.

        Args:
            sessions: By name.
            facts: Of these sessions.
            here: Enters their device.
            encode: Takes a frame to its features.
            detect: Begins to find phrases in it.
        """
        super().__init__(facts, encode=encode)
        self._sessions, self._detect = dict(sessions), detect
        device = torch.device(facts.device)
        with here():
            # Before the kernels of the parts, which are queued already.
            beside = torch.cuda.Stream(priority=-1) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._ground = Ground(device=device, here=here, beside=beside)

    def begin_detect(
        self, encoded: EncodedImage, phrases: tuple[str, ...], thresholds: Sequence[float]
    ) -> Pending[FoundInFrame]:
        """Begin to find what all phrases name in a frame; masks stay on the device."""
        return self._detect(encoded, phrases, thresholds, self._ground)

    def run(self, part: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run a part; arrays of the host go up, tensors stay where they are."""
        session = self._sessions[part]
        with self._ground.here():
            tensors = {name: self._up(value) for name, value in inputs.items()}
            return dict(run(session, placed(session, tensors)))

    def to_host(self, array: Any) -> Array:
        """Bring a tensor to the host; numbers of fewer bits become float32."""
        with self._ground.here():
            return to_host(_readable(array)).numpy()

    def begin_to_host(self, arrays: Mapping[str, Any]) -> Pending[dict[str, Array]]:
        """Start tensors on their way to the host, all of them together."""
        with self._ground.here():
            begun = begin_to_host([_readable(array) for array in arrays.values()])
        names = tuple(arrays)
        return begun.then(
            lambda there: {name: tensor.numpy() for name, tensor in zip(names, there, strict=True)}
        )

    def masks(self, logits: Any) -> MaskStack:
        """Masks in a tensor, or in an array of the host, which goes up."""
        with self._ground.here():
            return DeviceMasks(self._up(logits).float().contiguous(), self._ground)

    def begin_draw(self, masks: MaskStack, size_hw: tuple[int, int]) -> Pending[Masks]:
        """Start bits of crops at the frame's size on their way to the host."""
        known = masks.outline
        require_finite(bool(known.finite.all()))
        cells = known.cells
        left, top, right, bottom = cells.boxes.T
        reach = np.stack([-top, bottom - 1, -left, right - 1], axis=1).astype(np.int32)
        reach[~cells.any] = NOTHING
        index = np.stack([np.zeros(len(cells), np.intp), np.arange(len(cells))], axis=1)
        places = places_from_reach(index, reach, cells.size_hw, size_hw)
        with self._ground.here():
            bits = masks_to_host(masks.values[None], places, _INSIDE, self._ground.beside)
        return Pending(lambda: bits.taken(places))

    def give(self, masks: MaskStack, size_hw: tuple[int, int]) -> tuple[Any, MaskStack]:
        """Take masks of detections as masks that are given to the tracker."""
        with self._ground.here():
            chunks = torch.split(masks.values, _AT_ONCE)
            given = [_given(chunk, self.facts) for chunk in chunks]
            answers = [_answers(chunk, self.facts, size_hw) for chunk in given]
            return torch.cat(given), DeviceMasks(torch.cat(answers), self._ground)

    def _up(self, value: Any) -> Tensor:
        """Bring an array to the device, where it is not yet there."""
        if isinstance(value, Tensor):
            return value
        return to_device(torch.from_numpy(value), self._ground.device)

    def keep(self, memory: Any) -> list[Any]:
        """Split memories (N, L, C) into those of single objects, as bfloat16."""
        with self._ground.here():
            return [row.to(torch.bfloat16, copy=True) for row in memory]

    def recall(self, kept: Sequence[Sequence[Any]]) -> Any:
        """Join memories, N objects of M each, as (N, M, L, C)."""
        with self._ground.here():
            flat = torch.stack([memory for row in kept for memory in row])
            return flat.view(len(kept), len(kept[0]), *flat.shape[1:])

    def saved(self, kept: Any) -> Array:
        """One kept memory as its bits, uint16."""
        with self._ground.here():
            return np.asarray(kept.view(torch.int16).cpu().numpy()).view(np.uint16)

    def restored(self, array: Array) -> Any:
        """The kept memory that was saved."""
        with self._ground.here():
            bits = torch.from_numpy(np.ascontiguousarray(array).view(np.int16))
            return bits.to(self._ground.device).view(torch.bfloat16)


def _readable(tensor: Tensor) -> Tensor:
    """In a type that numpy has."""
    return tensor.float() if tensor.is_floating_point() else tensor


def _given(logits: Tensor, facts: TrackerFacts) -> Tensor:
    """``masks_to_give`` of given.py."""
    size = (facts.prompt_side, facts.prompt_side)
    if facts.reference == META:
        return (_resized(logits, size) > 0).float()
    return _resized((logits >= 0.5).float(), size)


def _answers(masks: Tensor, facts: TrackerFacts, size_hw: tuple[int, int]) -> Tensor:
    """``given_logits`` of given.py."""
    size = (facts.mask_side, facts.mask_side)
    if facts.reference != META:
        near = float(NEAR)
        return _resized(masks * 2 * near - near, size, antialias=True)
    at_frame = masks if masks.shape[1:] == size_hw else _resized(masks, size_hw, antialias=True)
    return _resized(torch.where(at_frame > 0.5, float(FAR), -float(FAR)), size, antialias=True)


def _resized(masks: Tensor, size_hw: tuple[int, int], *, antialias: bool = False) -> Tensor:
    """Resize masks (N, h, w) as the network's own resizes do."""
    return F.interpolate(
        masks[:, None], size_hw, mode="bilinear", align_corners=False, antialias=antialias
    )[:, 0]
