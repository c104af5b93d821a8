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
from samforge.runtime.device.masks import CHUNK_BYTES, BitsToHost, bits_ahead, masks_to_host
from samforge.runtime.device.places import Places, places_from_reach, places_on_device
from samforge.runtime.device.reach import reach
from samforge.runtime.device.results import (
    Found,
    answers_from_joined,
    chosen_from_found,
    detections_from_found,
    found_from_summary,
    lost_masks,
)
from samforge.runtime.device.transfer import host_tensor
from samforge.runtime.postprocess import mask_limit
from samforge.runtime.question import Question

_MOST_AHEAD = 16
"""Masks begun before their number is known. A wrong guess costs their copy, a right one saves
0.13 ms: only a number that came twice in a row is a guess."""
_ROOM = 1.25
"""Of the bytes that were needed the last two times, for masks that are begun ahead: from frame to
frame they grow a little."""
_SMALL = 1 << 16
"""Bytes that masks may keep in vain; of more, at most as many as they need."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Asked:
    """What a batch was asked."""

    question: Question
    """The same of every image."""
    sizes_hw: tuple[tuple[int, int], ...]
    """Height and width of each image, pixels."""
    apart: bool = False
    """Whether ``max_detections`` holds for each phrase by itself, or for all of an image."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Arriving:
    """What was found in a batch, its masks on their way to the host."""

    found: Found
    chosen: Mapping[tuple[int, int], npt.NDArray[np.intp]]
    """Admitted queries by image and phrase."""
    cut_off: tuple[int, ...]
    """How many more each image would have had."""
    places: tuple[Places, ...]
    """The masks of each image."""
    bits: tuple[BitsToHost, ...]
    """By image; there may be more of them than ``places`` says."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Begun:
    """Masks that did not wait for the host to read the scores."""

    slots: int
    """How many there may be."""
    bits: BitsToHost
    """As many of their bytes as were expected."""

    def holds(self, places: Places, cut_off: int) -> bool:
        """Whether they are what is wanted, and keep no more than twice its memory."""
        room, total = len(self.bits.bits), places.total
        fits = len(places) <= self.slots and total <= room <= max(2 * total, _SMALL)
        return fits and not cut_off  # the device admits all


@dataclass(kw_only=True, slots=True, eq=False)
class InFlight:
    """A batch whose kernels run while the processor does something else."""

    asked: Asked
    masks: Tensor
    """Mask logits, (B, P, Q, h, w), on the device: the next batch may write over them."""
    scores: Tensor
    """``results.summary`` on its way to the host."""
    reach: Tensor
    """``reach.reach`` of the masks likewise."""
    ready: torch.cuda.Event | None
    """Passed when the scores are there."""
    begun: Begun | None
    """Masks on their way already."""
    run: int
    """Of the detector, that wrote the masks."""
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
        # Masks and their bytes in the last two calls, the last one first, by phrases.
        self._seen: dict[int, tuple[tuple[int, int], tuple[int, int]]] = {}
        self._last: InFlight | None = None
        self._run = 0

    def pending(
        self, masks: Tensor, summary: Tensor, asked: Asked, *, alone: bool = True
    ) -> InFlight:
        """Start the scores on their way, and the masks where their number is as good as known.

        Args:
            masks: Mask logits, (B, P, Q, h, w).
            summary: What ``results.summary`` makes of the outputs.
            asked: What the batch was asked.
            alone: Whether the device has nothing to do until the host has read the scores.
        """
        limit = mask_limit(asked.question.mask, self._reference)
        # Of phrases with thresholds of their own, the lowest: it admits all that they admit.
        lowest = min(one.score for one in asked.question.thresholds)
        reaching = reach(masks, summary[..., 0], lowest, limit)
        scores, ends = self._to_host(summary), self._to_host(reaching)
        ready = None
        if self._device.type == "cuda":
            ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            ready.record()
        begun = self._begun(masks, summary, reaching, asked) if alone else None
        self._last = InFlight(
            asked=asked,
            masks=masks,
            scores=scores,
            reach=ends,
            ready=ready,
            begun=begun,
            run=self._run,
        )
        return self._last

    def _to_host(self, tensor: Tensor) -> Tensor:
        there = host_tensor(tuple(tensor.shape), tensor.dtype, self._device)
        there.copy_(tensor, non_blocking=True)
        return there

    def _begun(
        self, masks: Tensor, summary: Tensor, reaching: Tensor, asked: Asked
    ) -> Begun | None:
        question = asked.question
        last, before = self._seen.get(len(question.phrases), ((0, 0), (0, 0)))
        count, room = last[0], int(_ROOM * max(last[1], before[1]))
        steady = count == before[0] and 0 < count <= _MOST_AHEAD and 0 < room <= CHUNK_BYTES
        most = question.most
        if most is not None and count >= most:
            return None
        alike = len({one.score for one in question.thresholds}) == 1
        if not (self._ahead and steady and alike and len(asked.sizes_hw) == 1):
            return None
        (size_hw,) = asked.sizes_hw
        limit = mask_limit(question.mask, self._reference)
        index = admitted_on_device(summary[0, :, :, 0], question.thresholds[0].score, count)
        cells_hw = (masks.shape[-2], masks.shape[-1])
        table = places_on_device(index, reaching[0], cells_hw, size_hw)
        bits = bits_ahead(masks[0], table, room, size_hw, limit, self._copies)
        return Begun(slots=count, bits=bits)

    def make_room(self) -> None:
        """Start the masks of the last batch, if they are not under way: a detector may run then."""
        if self._last is not None:
            self._arriving(self._last)
        if self._kernels is not None:
            torch.cuda.current_stream().wait_stream(self._kernels)
        self._run += 1

    def _arriving(self, pending: InFlight) -> _Arriving:
        if self._last is pending:
            self._last = None  # even if it fails: the next call must not fail with it
        if pending.arriving is None:
            pending.arriving = self._started(pending)
        return pending.arriving

    @torch.inference_mode()
    def _started(self, pending: InFlight) -> _Arriving:
        """Wait for the scores, then start what admitted masks are not under way to the host.

        Raises:
            OutOfMemory: This failed before, and others may lie in the place of the masks by now.
        """
        if pending.run != self._run:
            raise lost_masks(pending.asked.question.phrases)
        if pending.ready is not None:
            pending.ready.synchronize()
        question = pending.asked.question
        found = found_from_summary(pending.scores)
        chosen, cut_off = chosen_from_found(
            found, question.thresholds, question.most, apart=pending.asked.apart
        )
        limit = mask_limit(question.mask, self._reference)
        images = range(len(pending.asked.sizes_hw))
        places = tuple(self._places(pending, chosen, image) for image in images)
        arriving = []
        for image, (mine, left_out) in enumerate(zip(places, cut_off, strict=True)):
            if pending.begun is not None and pending.begun.holds(mine, left_out):
                arriving.append(pending.begun.bits)
                continue
            with torch.cuda.stream(self._kernels):  # nothing where there is none
                arriving.append(masks_to_host(pending.masks[image], mine, limit, self._copies))
        if len(places) == 1:
            before = self._seen.get(len(question.phrases), ((0, 0), (0, 0)))[0]
            self._seen[len(question.phrases)] = ((len(places[0]), places[0].total), before)
        return _Arriving(
            found=found, chosen=chosen, cut_off=cut_off, places=places, bits=tuple(arriving)
        )

    @staticmethod
    def _places(
        pending: InFlight, chosen: Mapping[tuple[int, int], npt.NDArray[np.intp]], image: int
    ) -> Places:
        """Where the masks of one image go, phrase by phrase."""
        queries = [chosen[image, phrase] for phrase in range(len(pending.asked.question.phrases))]
        phrase = np.repeat(np.arange(len(queries)), [len(one) for one in queries])
        index = np.stack([phrase, np.concatenate(queries)], axis=1)
        ends = pending.reach.numpy()[image][index[:, 0], index[:, 1]]
        cells_hw = (pending.masks.shape[-2], pending.masks.shape[-1])
        return places_from_reach(index, ends, cells_hw, pending.asked.sizes_hw[image])

    def detections(self, pending: InFlight) -> Iterator[Detections]:
        """Detections of each image of a batch, when its masks are there."""
        arriving = self._arriving(pending)
        for image, (places, bits) in enumerate(zip(arriving.places, arriving.bits, strict=True)):
            # Everything else is put together while the masks are under way.
            detections = detections_from_found(
                arriving.found,
                bits.masks(places),
                arriving.chosen,
                image=image,
                labels=pending.asked.question.phrases,
                cut_off=arriving.cut_off[image],
            )
            bits.wait()
            yield detections

    def apart(self, pending: InFlight) -> Iterator[list[Detections]]:
        """The same, of each image phrase by phrase."""
        arriving = self._arriving(pending)
        question = pending.asked.question
        for image, detections in enumerate(self.detections(pending)):
            yield answers_from_joined(
                detections,
                arriving.found,
                arriving.chosen,
                question.thresholds,
                question.phrases,
                image,
            )
