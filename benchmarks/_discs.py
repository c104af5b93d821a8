"""Objects of known number and size for timings of the tracker: random weights find none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from samforge.runtime.pending import Pending
from samforge.runtime.tracking.cells import cells_from_bits, cells_from_masks
from samforge.runtime.tracking.parts import FoundInFrame
from samforge.runtime.tracking.stacks import AnyRows, Known, MaskStack, Rows
from samforge.runtime.tracking.state import Floats

SCORE = 0.9
"""Of every detection: above all thresholds of the rules, so that objects are corrected too."""
SIZE_HW = (1080, 1920)
"""Height and width of a frame, pixels."""


def discs(count: int, side: int) -> Floats:
    """Discs on a grid that together cover two thirds of the picture.

    Args:
        count: Discs.
        side: Of the masks, cells.

    Returns:
        (count, side, side), logits, one a cell from the edge of each disc, at most 12.
    """
    across = int(np.ceil(count**0.5))
    cell = side / across
    row, column = np.mgrid[0:side, 0:side].astype(np.float32)
    places = [divmod(number, across) for number in range(count)]
    return np.stack(
        [
            (0.45 * cell - np.hypot(row - (y + 0.5) * cell, column - (x + 0.5) * cell)).clip(
                -12, 12
            )
            for y, x in places
        ]
    ).astype(np.float32)


def found_discs(masks: MaskStack, phrase: str) -> FoundInFrame:
    """What a detector would say that finds all of them."""
    count = len(masks)
    return FoundInFrame(
        masks=masks,
        scores=np.full(count, SCORE, np.float32),
        phrases=np.zeros(count, np.int64),
        boxes_xyxy=np.zeros((count, 4), np.float32),
        best_scores={phrase: SCORE},
    )


def bits_of(masks: Floats) -> npt.NDArray[np.uint8]:
    """What a device hands over of masks (N, h, w): (N, K), a bit for each cell."""
    return cells_from_masks(masks).bits.view(np.uint8)


class FarMasks(MaskStack):
    """Masks on a device that does everything at once: bits arrive, and are read as if they had."""

    def __init__(
        self,
        bits: npt.NDArray[np.uint8],
        size_hw: tuple[int, int],
        known: Pending[Known] | None = None,
    ) -> None:
        super().__init__(np.broadcast_to(np.float32(0), (len(bits), *size_hw)), known)
        self.bits = bits

    def filled(self, area: int, rows: AnyRows | None = None) -> MaskStack:  # noqa: ARG002
        """Discs have no holes; what is known of these masks is read again."""
        return FarMasks(self.bits, self.size_hw)

    def joined(self, others: Sequence[MaskStack]) -> MaskStack:
        """Of several calls: there is one."""
        raise NotImplementedError

    def window(self, rows: AnyRows, box: Sequence[int]) -> Floats:
        """Of masks that meet: discs do not."""
        raise NotImplementedError

    def host(self) -> Floats:
        """Logits stay where they are."""
        raise NotImplementedError

    def _begun(self) -> Pending[Known]:
        def read() -> Known:
            fine = np.ones(len(self), np.bool_)
            cells = cells_from_bits(self.bits, self.size_hw)
            return Known(cells=cells, has_nan=~fine, finite=fine)

        return Pending(read)

    def _taken(self, rows: Rows, known: Pending[Known] | None) -> MaskStack:
        return FarMasks(self.bits[rows], self.size_hw, known)

    def _emptied(self, rows: Rows, known: Pending[Known] | None) -> MaskStack:
        bits = self.bits.copy()
        bits[rows] = 0
        return FarMasks(bits, self.size_hw, known)

    _clamped = _emptied
