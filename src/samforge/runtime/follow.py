"""Follows objects through a stream of frames: the next ones are read while one is tracked.

On a device the next frame is encoded and looked at, too, while the host decides about one, and its
objects are followed while that one is given out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic

import numpy as np

from samforge.core.capabilities import VISION
from samforge.core.detections import Detections
from samforge.core.errors import PromptError, SamforgeError
from samforge.core.native import error_of_item
from samforge.core.timing import Timings
from samforge.runtime.encoded import EncodedImage
from samforge.runtime.prefetch import Prefetcher
from samforge.runtime.segmenter import Segmenter
from samforge.runtime.stream import AnyFrame, SegmentedFrame, pixels_of, timed_frames
from samforge.runtime.tracking.around import TimedParts
from samforge.runtime.tracking.drawn import VideoFrame
from samforge.runtime.tracking.session import VideoSession
from samforge.runtime.tracking.settings import TrackingSettings
from samforge.runtime.tracking.video import PromptAt, check_reached, with_prompts


@dataclass(kw_only=True, slots=True)
class _Waiting(Generic[AnyFrame]):
    """A frame that the session has taken and not given yet."""

    frame: AnyFrame
    timings: Timings
    problem: SamforgeError | None = None


def follow_video(  # noqa: PLR0913  # each is a choice of its own
    segmenter: Segmenter,
    frames: Iterable[AnyFrame],
    *,
    text: str | Sequence[str] | None = None,
    prompts: Sequence[PromptAt] = (),
    settings: TrackingSettings | None = None,
    ahead: int = 2,
    isolate: bool = False,
) -> Prefetcher[SegmentedFrame[AnyFrame]]:
    """Follow objects through a stream, as :func:`samforge.runtime.segment_video` segments one.

    Where phrases are looked for, a frame comes out when it can no longer change: up to 14 frames
    wait with their pixels. Frames are numbered as they come, from 0.

    Args:
        segmenter: Of a bundle with its tracker.
        frames: See :func:`samforge.runtime.segment_video`.
        text: One or more noun phrases, looked for on every frame; None for none.
        prompts: Objects that are shown, each on a frame by its number in the stream.
        settings: See :class:`TrackingSettings`.
        ahead: Most frames that wait before the tracker, and most that wait after it.
        isolate: Whether a frame that cannot be tracked comes with a ``problem`` and no detections,
            instead of ending the stream. Objects go on behind it.

    Returns:
        An iterator over the frames in order; their detections have ids.

    Raises:
        PromptError: There is nothing to follow.
        SettingError: The bundle has no tracker.
    """
    if text is None and not prompts:
        raise PromptError("There is nothing to follow. Give phrases, or show an object.")
    parts = TimedParts(segmenter.tracker_parts(), segmenter.processor)
    session = VideoSession(parts, text=text, settings=settings)
    by_frame: dict[int, list[PromptAt]] = {}
    for one in prompts:
        by_frame.setdefault(one.frame, []).append(one)
    read = Prefetcher(timed_frames(frames), ahead=ahead, name="read")
    followed = _followed(session, _Reading(segmenter, read), parts, by_frame, isolate=isolate)
    return Prefetcher(followed, ahead=ahead, name="track")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Read(Generic[AnyFrame]):
    """A frame that the session takes next."""

    frame: AnyFrame
    timings: Timings
    image: Any
    """Its pixels, or what the vision part made of them."""


class _Reading(Generic[AnyFrame]):
    """Frames in order; a device encodes one that is there already while the host is at work."""

    def __init__(self, segmenter: Segmenter, read: Prefetcher[tuple[AnyFrame, Timings]]) -> None:
        self.read = read
        self._segmenter = segmenter
        self._next: _Read[AnyFrame] | None = None

    def __iter__(self) -> Iterator[_Read[AnyFrame]]:
        while True:
            taken, self._next = self._next, None
            if taken is None:
                try:
                    frame, timings = next(self.read)
                except StopIteration:
                    return
                taken = _Read(frame=frame, timings=timings, image=pixels_of(frame))
            yield taken

    def begin_next(self) -> EncodedImage | None:
        """Encode the next frame, if it is there and a device would do it by itself."""
        if not self._segmenter.overlaps or self._next is not None or not self.read.has_next():
            return None
        frame, timings = next(self.read)
        self._next = _Read(frame=frame, timings=timings, image=pixels_of(frame))
        try:
            with timings.stage(VISION, self._segmenter.processor):
                encoded = self._segmenter.encode(self._next.image)
        except Exception:  # noqa: BLE001  # raised again in its turn, when the session encodes it
            return None
        self._next = replace(self._next, image=encoded)
        return encoded


def _followed(
    session: VideoSession,
    reading: _Reading[AnyFrame],
    parts: TimedParts,
    prompts: Mapping[int, Sequence[PromptAt]],
    *,
    isolate: bool,
) -> Iterator[SegmentedFrame[AnyFrame]]:
    waiting: deque[tuple[int, _Waiting[AnyFrame]]] = deque()
    with reading.read:
        for number, one in enumerate(reading):
            parts.timings = one.timings
            shot = _Waiting(frame=one.frame, timings=one.timings)
            waiting.append((number, shot))
            left: list[VideoFrame] = []
            try:
                left = session.step(one.image, number, ahead=reading.begin_next)
                left = with_prompts(session, left, prompts.get(number, ()))
            except Exception as error:
                if not isolate:
                    yield from _leaving(waiting, left)
                    raise
                shot.problem = error_of_item(error)
            yield from _leaving(waiting, left)
    yield from _leaving(waiting, session.finish())
    yield from _leaving(waiting, ())
    check_reached(session, prompts)


def _leaving(
    waiting: deque[tuple[int, _Waiting[AnyFrame]]], left: Sequence[VideoFrame]
) -> Iterator[SegmentedFrame[AnyFrame]]:
    """Frames that the session gives, and in their places those that it could not take."""
    for found in left:
        while waiting and waiting[0][0] <= found.index:
            number, shot = waiting.popleft()
            if number < found.index and shot.problem is None:
                raise RuntimeError(f"Frame {number} left without its detections.")
            yield _shown(shot, found.detections if number == found.index else None)
    while waiting and waiting[0][1].problem is not None:
        yield _shown(waiting.popleft()[1], None)


def _shown(shot: _Waiting[AnyFrame], found: Detections | None) -> SegmentedFrame[AnyFrame]:
    rgb = pixels_of(shot.frame)
    if found is None or shot.problem is not None:
        nothing = Detections.empty((rgb.shape[0], rgb.shape[1]))
        found = replace(nothing, ids=np.zeros(0, np.int64))
    return SegmentedFrame(
        frame=shot.frame, detections=found, timings=shot.timings, problem=shot.problem
    )
