"""Masks of a frame that stay on a device: the host gets a bit a cell, and whether all is finite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from samforge.runtime.device.holes import filled_masks
from samforge.runtime.device.transfer import begin_to_host, to_device, to_host
from samforge.runtime.pending import Pending
from samforge.runtime.tracking.cells import cells_from_bits, row_bytes
from samforge.runtime.tracking.masks import SUPPRESSED
from samforge.runtime.tracking.stacks import AnyRows, Known, MaskStack, Rows
from samforge.runtime.tracking.state import Floats

Here: TypeAlias = Callable[[], AbstractContextManager[None]]
"""Enters the device, one thread at a time."""
_CHANGED = -1


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Ground:
    """Where masks lie."""

    device: torch.device
    """The device."""
    here: Here
    """Enters it."""
    beside: torch.cuda.Stream | None
    """Stream of what must not wait for the parts; None where there are no streams."""


class DeviceMasks(MaskStack):
    """Masks in a tensor."""

    values: Tensor

    def __init__(self, values: Tensor, ground: Ground, known: Pending[Known] | None = None) -> None:
        """Keep masks.

        Args:
            values: (N, h, w), float32, on the device.
            ground: Where that is.
            known: What the host knows of them, where it is on its way already.
        """
        super().__init__(values, known)
        self._ground = ground
        self._outline: Pending[Known] | None = None
        self._made: torch.cuda.Event | None = None
        self._origin: tuple[DeviceMasks, Rows] | None = None

    @property
    def outline(self) -> Known:
        """What is known, or, where it is not under way, that of the masks before holes closed."""
        if self._known is None and self._outline is not None:
            return self._outline.result()
        return self.known

    def filled(self, area: int, rows: AnyRows | None = None) -> MaskStack:
        """The masks without small holes and specks."""
        with self._ground.here():
            if rows is None or len(rows) == len(self):
                values = filled_masks(self.values, area)
            else:
                at = self._up(np.asarray(rows, np.intp))
                some = filled_masks(self.values.index_select(0, at), area)
                values = self.values.index_copy(0, at, some)
        made = DeviceMasks(values, self._ground)
        if self._known is not None:
            made._outline = self._known.then(lambda one: one.widened(area))
        return made

    def joined(self, others: Sequence[MaskStack]) -> MaskStack:
        """These masks and others."""
        with self._ground.here():
            values = torch.cat([self.values, *(one.values for one in others)])
        return DeviceMasks(values, self._ground)

    def window(self, rows: AnyRows, box: Sequence[int]) -> Floats:
        """Part of some masks; waits for these alone, not for what the device was given since."""
        at = np.asarray(rows, np.intp)
        if self._origin is not None:
            before, whence = self._origin
            if (whence[at] != _CHANGED).all():
                return before.window(whence[at], box)
        with self._ground.here():
            if self._ground.beside is None:
                return to_host(self._part(at, box)).numpy()
            if self._made is None:
                self._ground.beside.wait_stream(torch.cuda.current_stream())
            else:
                self._ground.beside.wait_event(self._made)
            with torch.cuda.stream(self._ground.beside):
                return to_host(self._part(at, box)).numpy()

    def host(self) -> Floats:
        """All logits, brought to the host."""
        with self._ground.here():
            return to_host(self.values).numpy()

    def _part(self, rows: Rows, box: Sequence[int]) -> Tensor:
        left, top, right, bottom = box
        part = self.values[:, top:bottom, left:right]
        return part.index_select(0, self._up(rows))

    def _up(self, rows: Rows) -> Tensor:
        # torch takes no array that counts down, and numpy calls one of a single row contiguous.
        return to_device(torch.from_numpy(np.array(rows, order="C")), self._ground.device)

    def _begun(self) -> Pending[Known]:
        with self._ground.here():
            if self._ground.beside is not None:
                self._made = torch.cuda.Event()  # type: ignore[no-untyped-call]
                self._made.record()
            looked = begin_to_host([looked_at(self.values)])
        count, size_hw = len(self), self.size_hw
        return looked.then(lambda one: known_from_looked(one[0].numpy(), count, size_hw))

    def _taken(self, rows: Rows, known: Pending[Known] | None) -> MaskStack:
        with self._ground.here():
            values = self.values.index_select(0, self._up(rows))
        return self._from(values, known, rows)

    def _emptied(self, rows: Rows, known: Pending[Known] | None) -> MaskStack:
        with self._ground.here():
            values = self.values.index_fill(0, self._up(rows), float(SUPPRESSED))
        return self._from(values, known, self._but(rows))

    def _clamped(self, rows: Rows, known: Pending[Known] | None) -> MaskStack:
        with self._ground.here():
            at = self._up(rows)
            some = self.values.index_select(0, at).clamp(max=float(SUPPRESSED))
            values = self.values.index_copy(0, at, some)
        return self._from(values, known, self._but(rows))

    def _but(self, rows: Rows) -> Rows:
        whence = np.arange(len(self))
        whence[rows] = _CHANGED
        return whence

    def _from(self, values: Tensor, known: Pending[Known] | None, whence: Rows) -> DeviceMasks:
        made = DeviceMasks(values, self._ground, known)
        made._origin = (self, whence)
        return made


def looked_at(masks: Tensor) -> Tensor:
    """Bits of the cells above 0, then whether there is NaN and whether all is finite: flat, uint8.

    Args:
        masks: (N, h, w).

    Returns:
        N times ``row_bytes``, then N flags, then N flags.
    """
    count, height, width = masks.shape
    across = -(-width // 8)
    above = F.pad((masks > 0).to(torch.uint8), (0, 8 * across - width))
    weights = 2 ** torch.arange(7, -1, -1, dtype=torch.uint8, device=masks.device)
    bits = (above.view(count, height, across, 8) * weights).sum(-1, dtype=torch.uint8)
    bits = F.pad(bits.flatten(1), (0, row_bytes((height, width)) - height * across))
    nan = masks.isnan().any(2).any(1)
    finite = masks.isfinite().all(2).all(1)
    return torch.cat([bits.flatten(), nan.to(torch.uint8), finite.to(torch.uint8)])


def known_from_looked(looked: npt.NDArray[np.uint8], count: int, size_hw: tuple[int, int]) -> Known:
    """Read what :func:`looked_at` made of N masks, once it is on the host."""
    flags: npt.NDArray[Any] = looked[len(looked) - 2 * count :].reshape(2, count) != 0
    bits = looked[: len(looked) - 2 * count].reshape(count, row_bytes(size_hw))
    return Known(cells=cells_from_bits(bits, size_hw), has_nan=flags[0], finite=flags[1])
