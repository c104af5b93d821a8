"""Runs the tracker's parts on a device: features, memories and masks stay there between calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samforge.core.session import DeviceSession
from samforge.runtime.device.session import placed, run
from samforge.runtime.tracking.host_parts import Detect, Encode, PartsOfSessions
from samforge.runtime.tracking.parts import Array, TrackerFacts

Here = Callable[[], AbstractContextManager[None]]
"""Enters the device, one thread at a time."""


class DeviceTrackerParts(PartsOfSessions):
    """Sessions that take tensors where they are, all on one device."""

    def __init__(
        self,
        sessions: Mapping[str, DeviceSession],
        facts: TrackerFacts,
        *,
        here: Here,
        encode: Encode,
        detect: Detect,
    ) -> None:
        """Use what runs the parts.

        Args:
            sessions: By name.
            facts: Of these sessions.
            here: Enters their device.
            encode: Takes a frame to its features.
            detect: Finds phrases in it.
        """
        super().__init__(facts, encode=encode, detect=detect)
        self._sessions, self._here = dict(sessions), here
        self._device = next(iter(sessions.values())).device

    def run(self, part: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run a part; arrays of the host go up, tensors stay where they are."""
        session = self._sessions[part]
        with self._here():
            tensors = {
                name: value if isinstance(value, Tensor) else torch.from_numpy(value)
                for name, value in inputs.items()
            }
            return dict(run(session, placed(session, tensors)))

    def to_host(self, array: Any) -> Array:
        """Bring a tensor to the host; numbers of fewer bits become float32."""
        with self._here():
            array = array.float() if array.is_floating_point() else array
            host: Array = array.cpu().numpy()
            return host

    def keep(self, memory: Any) -> list[Any]:
        """Split memories (N, L, C) into those of single objects, as bfloat16."""
        with self._here():
            return [row.to(torch.bfloat16, copy=True) for row in memory]

    def recall(self, kept: Sequence[Sequence[Any]]) -> Any:
        """Join memories, N objects of M each, as (N, M, L, C)."""
        with self._here():
            flat = torch.stack([memory for row in kept for memory in row])
            return flat.view(len(kept), len(kept[0]), *flat.shape[1:])

    def saved(self, kept: Any) -> Array:
        """One kept memory as its bits, uint16."""
        with self._here():
            return np.asarray(kept.view(torch.int16).cpu().numpy()).view(np.uint16)

    def restored(self, array: Array) -> Any:
        """The kept memory that was saved."""
        with self._here():
            bits = torch.from_numpy(np.ascontiguousarray(array).view(np.int16))
            return bits.to(self._device).view(torch.bfloat16)
