"""Masks of a frame where the parts run; the host knows which of their cells are above 0."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from samforge.runtime.pending import Pending
from samforge.runtime.tracking.cells import Cells, cells_from_masks
from samforge.runtime.tracking.masks import SUPPRESSED, filled_holes
from samforge.runtime.tracking.state import Floats

Rows: TypeAlias = npt.NDArray[np.intp]
AnyRows: TypeAlias = Sequence[int] | npt.NDArray[np.integer[Any]]
Flags: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Known:
    """What the host knows of N masks."""

    cells: Cells
    """Where they are above 0."""
    has_nan: Flags
    """(N,)."""
    finite: Flags
    """(N,): whether every logit is."""

    def taken(self, rows: Rows) -> Known:
        """That of some masks."""
        return Known(
            cells=self.cells.taken(rows), has_nan=self.has_nan[rows], finite=self.finite[rows]
        )

    def widened(self, cells: int) -> Known:
        """The same with boxes that reach further on each side; masks without a cell stay so."""
        return replace(self, cells=self.cells.widened(cells))

    def emptied(self, rows: Rows) -> Known:
        """That of the masks when some of them have no cell any more."""
        return Known(cells=self.cells.emptied(rows), has_nan=self.has_nan, finite=self.finite)


class MaskStack(ABC):
    """N masks of one frame, logits. It does not change: what changes masks makes new ones."""

    def __init__(self, values: Any, known: Pending[Known] | None = None) -> None:
        """Keep masks.

        Args:
            values: (N, h, w), float32, where the parts run.
            known: What the host knows of them, where it is on its way already.
        """
        self.values = values
        """(N, h, w), float32, where the parts run. Nobody writes to it."""
        self._known = known

    def __len__(self) -> int:
        return int(self.values.shape[0])

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the masks, cells."""
        return int(self.values.shape[1]), int(self.values.shape[2])

    def begin(self) -> None:
        """Start what the host knows of the masks on its way."""
        if self._known is None:
            self._known = self._begun()

    @property
    def known(self) -> Known:
        """What the host knows of the masks; waits for it."""
        self.begin()
        assert self._known is not None  # noqa: S101  # begun above
        return self._known.result()

    @property
    def cells(self) -> Cells:
        """Where the masks are above 0."""
        return self.known.cells

    @property
    def outline(self) -> Known:
        """As :attr:`known`, but boxes may be wider: then nobody waits for it."""
        return self.known

    def taken(self, rows: AnyRows) -> MaskStack:
        """Some of the masks, in the order of ``rows``; itself where they are all, in order."""
        at = np.asarray(rows, np.intp)
        if len(at) == len(self) and np.array_equal(at, np.arange(len(self))):
            return self
        known = None if self._known is None else self._known.then(lambda one: one.taken(at))
        return self._taken(at, known)

    def emptied(self, rows: AnyRows) -> MaskStack:
        """The masks with every logit of some of them -10; itself without rows."""
        at = np.asarray(rows, np.intp)
        return self if not len(at) else self._emptied(at, self._without(at))

    def clamped(self, rows: AnyRows) -> MaskStack:
        """The masks with logits of some of them at most -10; itself without rows."""
        at = np.asarray(rows, np.intp)
        return self if not len(at) else self._clamped(at, self._without(at))

    def _without(self, rows: Rows) -> Pending[Known] | None:
        return None if self._known is None else self._known.then(lambda one: one.emptied(rows))

    @abstractmethod
    def filled(self, area: int, rows: AnyRows | None = None) -> MaskStack:
        """The masks without small holes and specks: :func:`~.masks.filled_holes`.

        Args:
            area: Cells; 0 changes nothing.
            rows: Which of the masks; None for all.
        """

    @abstractmethod
    def joined(self, others: Sequence[MaskStack]) -> MaskStack:
        """These masks and those of others of the same kind, in order."""

    @abstractmethod
    def window(self, rows: AnyRows, box: Sequence[int]) -> Floats:
        """Part of some masks on the host.

        Args:
            rows: K masks.
            box: Left, top, right, bottom in cells.

        Returns:
            (K, bottom - top, right - left).
        """

    @abstractmethod
    def host(self) -> Floats:
        """All logits on the host, (N, h, w)."""

    @abstractmethod
    def _begun(self) -> Pending[Known]: ...
    @abstractmethod
    def _taken(self, rows: Rows, known: Pending[Known] | None) -> MaskStack: ...
    @abstractmethod
    def _emptied(self, rows: Rows, known: Pending[Known] | None) -> MaskStack: ...
    @abstractmethod
    def _clamped(self, rows: Rows, known: Pending[Known] | None) -> MaskStack: ...


class HostMasks(MaskStack):
    """Masks in arrays of the host."""

    def filled(self, area: int, rows: AnyRows | None = None) -> MaskStack:
        """The masks without small holes and specks."""
        if rows is None or len(rows) == len(self):
            return HostMasks(filled_holes(self.values, area))
        at = np.asarray(rows, np.intp)
        filled = self.values.copy()
        filled[at] = filled_holes(self.values[at], area)
        return HostMasks(filled)

    def joined(self, others: Sequence[MaskStack]) -> MaskStack:
        """These masks and others."""
        return HostMasks(np.concatenate([self.values, *(one.values for one in others)]))

    def window(self, rows: AnyRows, box: Sequence[int]) -> Floats:
        """Part of some masks."""
        left, top, right, bottom = box
        part: Floats = self.values[np.asarray(rows, np.intp), top:bottom, left:right]
        return part

    def host(self) -> Floats:
        """All logits: they are there."""
        values: Floats = self.values
        return values

    def _begun(self) -> Pending[Known]:
        return Pending(lambda: known_from_masks(self.values))

    def _taken(self, rows: Rows, known: Pending[Known] | None) -> MaskStack:
        return HostMasks(self.values[rows], known)

    def _emptied(self, rows: Rows, known: Pending[Known] | None) -> MaskStack:
        changed = self.values.copy()
        changed[rows] = SUPPRESSED
        return HostMasks(changed, known)

    def _clamped(self, rows: Rows, known: Pending[Known] | None) -> MaskStack:
        changed = self.values.copy()
        changed[rows] = np.minimum(changed[rows], SUPPRESSED)
        return HostMasks(changed, known)


def known_from_masks(masks: Floats) -> Known:
    """Look at masks (N, h, w) of the host."""
    flat = masks.reshape(len(masks), masks.shape[1] * masks.shape[2])
    # NaN goes through both, and a pass without an array of booleans takes a third of the time.
    most, least = (
        ends(flat, axis=1, initial=np.float32(0)) for ends in (np.maximum.reduce, np.minimum.reduce)
    )
    return Known(
        cells=cells_from_masks(masks),
        has_nan=np.isnan(most),
        finite=np.isfinite(most) & np.isfinite(least),
    )


def joined_masks(stacks: Sequence[MaskStack]) -> MaskStack:
    """Stacks of one kind, at least one of them, as one."""
    first, *others = stacks
    return first.joined(others) if others else first
