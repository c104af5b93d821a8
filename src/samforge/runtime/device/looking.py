"""What phrases name in a frame of a video: begun on the device, asked for by the session."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from samforge.runtime.device.results import Found, found_from_summary, lost_masks
from samforge.runtime.device.stacks import DeviceMasks, Ground
from samforge.runtime.device.transfer import begin_to_host, to_device
from samforge.runtime.postprocess import refuse_nan
from samforge.runtime.tracking.parts import FoundInFrame


class Looking:
    """One call of the detector, whose scores are on their way to the host.

    A detector writes where it wrote the time before (its CUDA graph does). So masks are taken out
    of its answer before it runs again: :meth:`take`, once the scores say which.
    """

    def __init__(
        self,
        masks: Tensor,
        summary: Tensor,
        phrases: Sequence[str],
        thresholds: Sequence[float],
        ground: Ground,
    ) -> None:
        """Start the scores on their way.

        Args:
            masks: Mask logits of one image, (P, Q, h, w), where the detector writes them.
            summary: What ``results.summary`` makes of the outputs.
            phrases: P, that were asked.
            thresholds: One for each: detections that score above it are given.
            ground: Where masks are kept.
        """
        self._masks: Tensor | None = masks
        self._phrases, self._thresholds, self._ground = phrases, thresholds, ground
        self._summary = begin_to_host([summary])
        self._taken: DeviceMasks | None = None

    def take(self) -> DeviceMasks:
        """Take the masks that are wanted; waits for the scores, the first time.

        Raises:
            OutOfMemory: They could not be taken before: others may lie in their place by now.
        """
        if self._taken is None:
            masks, self._masks = self._masks, None  # even if it fails
            if masks is None:
                raise lost_masks(self._phrases)
            taken = DeviceMasks(self._wanted(masks), self._ground)
            taken.begin()
            self._taken = taken
        return self._taken

    def found(self) -> FoundInFrame:
        """What the phrases name.

        Raises:
            FidelityError: A score is NaN.
            OutOfMemory: See :meth:`take`.
        """
        with self._ground.here():
            masks = self.take()
        found = self._found()
        for number, phrase in enumerate(self._phrases):
            refuse_nan("scores", found.scores[0, number], phrase)
        rows = self._rows(found)
        every = range(len(rows))
        return FoundInFrame(
            masks=masks,
            scores=np.concatenate([found.scores[0, number, rows[number]] for number in every]),
            phrases=np.repeat(np.arange(len(rows)), [len(one) for one in rows]).astype(np.int64),
            boxes_xyxy=np.concatenate([found.boxes[0, number, rows[number]] for number in every]),
            best_scores={
                phrase: float(found.scores[0, number].max())
                for number, phrase in enumerate(self._phrases)
            },
        )

    def _wanted(self, masks: Tensor) -> Tensor:
        rows = self._rows(self._found())
        at = to_device(torch.from_numpy(np.concatenate(rows)), self._ground.device)
        parts = torch.split(at, [len(one) for one in rows])
        # Phrase by phrase: a detector whose channels lie last would copy all of them to join.
        taken = [one.index_select(0, where) for one, where in zip(masks, parts, strict=True)]
        return torch.cat(taken).float().contiguous()

    def _found(self) -> Found:
        return found_from_summary(self._summary.result()[0])

    def _rows(self, found: Found) -> list[np.ndarray]:
        """Queries of each phrase in their order, as Meta's tracker has them: the rules go by it."""
        return [
            np.flatnonzero(scores > np.float32(threshold))
            for scores, threshold in zip(found.scores[0], self._thresholds, strict=True)
        ]
