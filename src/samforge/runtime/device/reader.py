"""From a detector's outputs on the device to detections on the host."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from samforge.core.detections import Detections
from samforge.runtime.device.admission import admitted_on_device
from samforge.runtime.device.masks import MasksToHost, index_on_device, masks_to_host
from samforge.runtime.device.results import (
    Found,
    chosen_from_found,
    detections_from_found,
    found_from_summary,
)
from samforge.runtime.device.transfer import host_tensor
from samforge.runtime.executor import Question
from samforge.runtime.postprocess import mask_limit

_MOST_AHEAD = 16
"""Masks begun before their number is known. A wrong guess costs the copy of each (0.16 ms at 4K
over PCIe 5), a right one saves 0.13 ms: only a number that came twice in a row is a guess."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Asked:
    """What a batch was asked."""

    question: Question
    """The same of every image."""
    sizes_hw: tuple[tuple[int, int], ...]
    """Height and width of each image, pixels."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Arriving:
    """What was found in a batch, its masks on their way to the host."""

    found: Found
    chosen: Mapping[tuple[int, int], npt.NDArray[np.intp]]
    """Admitted queries by image and phrase."""
    counts: tuple[int, ...]
    """Masks of each image."""
    masks: tuple[MasksToHost, ...]
    """By image; there may be more of them than ``counts`` says."""


@dataclass(kw_only=True, slots=True, eq=False)
class InFlight:
    """A batch whose kernels run while the processor does something else."""

    asked: Asked
    masks: Tensor
    """Mask logits, (B, P, Q, h, w), on the device: the next batch may write over them."""
    scores: Tensor
    """``results.summary`` on its way to the host."""
    ready: torch.cuda.Event | None
    """Passed when the scores are there."""
    begun: MasksToHost | None
    """The best masks, which did not wait for the host to read the scores."""
    arriving: _Arriving | None = None
    """Once its masks are under way, too."""


class ResultReader:
    """Brings scores, then masks of admitted queries to the host.

    A detector writes where it wrote the time before (its CUDA graph does). So one batch at most has
    masks that are not under way yet, and :meth:`make_room` starts them before the next one runs.
    """

    def __init__(self, device: torch.device, masks_ahead: bool | None, reference: str) -> None:
        """Remember the device and how masks are made.

        Args:
            device: Where the detector writes.
            masks_ahead: Whether masks are begun ahead; None does so on a GPU.
            reference: Whose masks: see ``postprocess.mask_limit``.
        """
        cuda = device.type == "cuda"
        self._device = device
        self._reference = reference
        # Before the kernels of the next batch, which are queued already.
        self._kernels = torch.cuda.Stream(priority=-1) if cuda else None  # type: ignore[no-untyped-call]
        self._copies = torch.cuda.Stream() if cuda else None  # type: ignore[no-untyped-call]
        self._ahead = cuda if masks_ahead is None else masks_ahead
        self._counts: dict[int, tuple[int, int]] = {}  # of the last two calls, by phrases
        self._last: InFlight | None = None

    def pending(
        self, masks: Tensor, summary: Tensor, asked: Asked, *, alone: bool = True
    ) -> InFlight:
        """Start the scores on their way, and the masks where their number is as good as known.

        Args:
            masks: Mask logits, (B, P, Q, h, w).
            summary: Scores and boxes as ``results.summary`` makes them.
            asked: What the batch was asked.
            alone: Whether the device has nothing to do until the host has read the scores.
        """
        scores = host_tensor(tuple(summary.shape), torch.float32, self._device)
        scores.copy_(summary, non_blocking=True)
        ready = None
        if self._device.type == "cuda":
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record()
        begun = self._begun(masks, summary, asked) if alone else None
        self._last = InFlight(asked=asked, masks=masks, scores=scores, ready=ready, begun=begun)
        return self._last

    def _begun(self, masks: Tensor, summary: Tensor, asked: Asked) -> MasksToHost | None:
        question = asked.question
        count, before = self._counts.get(len(question.phrases), (0, 0))
        steady = count == before and 0 < count <= _MOST_AHEAD
        alike = len({one.score for one in question.thresholds}) == 1
        if not (self._ahead and steady and alike and len(asked.sizes_hw) == 1):
            return None
        index = admitted_on_device(summary[0, :, :, 0], question.thresholds[0].score, count)
        limit = mask_limit(question.mask, self._reference)
        return masks_to_host(masks[0], index, asked.sizes_hw[0], limit, self._copies)

    def make_room(self) -> None:
        """Start the masks of the last batch, if they are not under way: a detector may run then."""
        if self._last is not None:
            self._arriving(self._last)
        if self._kernels is not None:
            torch.cuda.current_stream().wait_stream(self._kernels)

    def _arriving(self, pending: InFlight) -> _Arriving:
        if self._last is pending:
            self._last = None  # even if it fails: the next call must not fail with it
        if pending.arriving is None:
            pending.arriving = self._started(pending)
        return pending.arriving

    @torch.inference_mode()
    def _started(self, pending: InFlight) -> _Arriving:
        """Wait for the scores, then start what admitted masks are not under way to the host."""
        if pending.ready is not None:
            pending.ready.synchronize()
        question = pending.asked.question
        found = found_from_summary(pending.scores)
        chosen = chosen_from_found(found, question.thresholds)
        phrases = range(len(question.phrases))
        counts, arriving = [], []
        limit = mask_limit(question.mask, self._reference)
        for image, size_hw in enumerate(pending.asked.sizes_hw):
            wanted = [(phrase, int(query)) for phrase in phrases for query in chosen[image, phrase]]
            counts.append(len(wanted))
            # Not where they would keep twice the memory of what was found.
            begun = pending.begun
            if begun is not None and len(wanted) <= len(begun.masks) <= 2 * len(wanted):
                arriving.append(begun)
                continue
            logits = pending.masks[image]
            with torch.cuda.stream(self._kernels):  # nothing where there is none
                index = index_on_device(wanted, self._device)
                arriving.append(masks_to_host(logits, index, size_hw, limit, self._copies))
        if len(counts) == 1:
            self._counts[len(phrases)] = (counts[0], self._counts.get(len(phrases), (0, 0))[0])
        return _Arriving(found=found, chosen=chosen, counts=tuple(counts), masks=tuple(arriving))

    def detections(self, pending: InFlight) -> Iterator[Detections]:
        """Detections of each image of a batch, when its masks are there."""
        arriving, asked = self._arriving(pending), pending.asked
        for image, size_hw in enumerate(asked.sizes_hw):
            count, masks = arriving.counts[image], arriving.masks[image]
            # Everything else is put together while the masks are under way.
            detections = detections_from_found(
                arriving.found,
                masks.masks[:count].numpy(),
                arriving.chosen,
                image=image,
                labels=asked.question.phrases,
                size_hw=size_hw,
            )
            masks.wait(count)
            yield detections
