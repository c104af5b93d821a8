"""Segments a stream of frames: the next ones are read while one is segmented."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from samforge.core.detections import Detections
from samforge.core.errors import SamforgeError, SettingError, ShapeError
from samforge.core.images import RgbImage
from samforge.core.native import error_of_item
from samforge.core.timing import Timings
from samforge.runtime.faults import Fault, until_fault
from samforge.runtime.postprocess import Thresholds
from samforge.runtime.prefetch import Prefetcher
from samforge.runtime.question import Question, question_from
from samforge.runtime.segmenter import Segmenter


class Picture(Protocol):
    """A frame that carries more than its pixels, such as ``samforge.media.video.VideoFrame``."""

    @property
    def image_rgb(self) -> RgbImage:
        """(H, W, 3), uint8."""
        ...


AnyFrame = TypeVar("AnyFrame", bound="RgbImage | Picture")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SegmentedFrame(Generic[AnyFrame]):
    """One frame of a stream and what was found in it."""

    frame: AnyFrame
    """As the stream gave it, with pixels of its own."""
    detections: Detections
    """At the frame's resolution."""
    timings: Timings
    """Its stages, ``decode`` (waiting for the stream to give it) to ``post-process``.

    They overlap with those of other frames: more time passes in the stages than on the clock.
    """
    problem: SamforgeError | None = None
    """Why it could not be segmented, where streams were asked to go on."""


def segment_video(
    segmenter: Segmenter,
    frames: Iterable[AnyFrame],
    *,
    text: str | Sequence[str],
    thresholds: Thresholds | Sequence[Thresholds] = Thresholds(),  # noqa: B008  it is frozen
    ahead: int = 2,
    isolate: bool = False,
) -> Prefetcher[SegmentedFrame[AnyFrame]]:
    """Find what phrases name in each frame of a stream, one frame at a time.

    Two threads work at once, beside the caller's: one reads ``frames``, one segments. Phrases are
    encoded with the first frame and remembered. Each frame stands for itself: objects have no
    identity across frames.

    Args:
        segmenter: What ``samforge.load`` gives.
        frames: RGB arrays (H, W, 3), or objects with an ``image_rgb``: a file's frames, a
            camera's, a list. It is read in a thread of its own. What an iterator gives is copied
            before the next frame is asked for, so it may fill one array again and again; objects
            whose ``owns_pixels`` is true are not copied.
        text: One or more noun phrases.
        thresholds: What counts as found; one for all phrases, or one for each: these differ in
            their scores alone.
        ahead: Most frames that wait before the segmenter, and most that wait after it: memory
            stays the same however long the stream is.
        isolate: Whether a frame that cannot be segmented comes with a ``problem`` and no
            detections, instead of ending the stream.

    Returns:
        An iterator over the frames in order. Leave it early by ``close``, a ``with`` block or by
        dropping it.

    Raises:
        PromptError: There is nothing to find, or there are more or fewer thresholds than
            phrases.
        SettingError: ``ahead`` is below 1, or thresholds differ in more than their scores.
    """
    several = [thresholds] if isinstance(thresholds, Thresholds) else list(thresholds)
    first = several[0] if several else Thresholds()
    if any(replace(one, score=first.score) != first for one in several):
        raise SettingError(
            "Thresholds of phrases may differ in their scores, and in nothing else. Give all of "
            f"them mask={first.mask:g} and max_detections={first.max_detections}."
        )
    scores = [one.score for one in several]
    question = question_from(
        text,
        first.score if isinstance(thresholds, Thresholds) else scores,
        first.mask,
        first.max_detections,
    )
    read = Prefetcher(timed_frames(frames), ahead=ahead, name="read")
    segmented = _segmented(segmenter, read, question, isolate=isolate)
    return Prefetcher(segmented, ahead=ahead, name="segment")


def timed_frames(frames: Iterable[AnyFrame]) -> Iterator[tuple[AnyFrame, Timings]]:
    """Measure how long each frame takes to come; copy it if its memory may be filled again.

    Cameras fill one buffer, or a few in turn. A frame of a list or tuple stays what it is.
    """
    copied = not isinstance(frames, Sequence)
    iterator = iter(frames)
    try:
        while True:
            timings = Timings()
            start = time.perf_counter()
            try:
                frame = next(iterator)
            except StopIteration:
                return
            frame = _copy(frame) if copied else frame
            timings.add("decode", (time.perf_counter() - start) * 1e3)
            yield frame, timings
    finally:
        if close := getattr(iterator, "close", None):
            close()


def _copy(frame: AnyFrame) -> AnyFrame:
    """The frame with pixels of its own."""
    if isinstance(frame, np.ndarray):
        return frame.copy()
    if getattr(frame, "owns_pixels", False):
        return frame
    pixels = np.array(frame.image_rgb)
    if dataclasses.is_dataclass(frame) and not isinstance(frame, type):
        with contextlib.suppress(TypeError, ValueError):  # image_rgb is no field that can be set
            return dataclasses.replace(frame, image_rgb=pixels)
    twin = copy.copy(frame)
    try:
        object.__setattr__(twin, "image_rgb", pixels)
    except AttributeError as error:  # a property, or a slot of another name
        raise ShapeError(
            f"Frames of the type {type(frame).__name__} cannot be copied, and the stream may fill "
            "their memory again. Give arrays or dataclasses with an image_rgb, or an owns_pixels "
            "that is true if every frame has memory of its own."
        ) from error
    return twin


@dataclass(kw_only=True, slots=True)
class _Shot(Generic[AnyFrame]):
    """A frame on its way."""

    frame: AnyFrame
    timings: Timings
    launched: Any = None
    problem: SamforgeError | None = None


def _segmented(
    segmenter: Segmenter,
    read: Prefetcher[tuple[AnyFrame, Timings]],
    question: Question,
    *,
    isolate: bool,
) -> Iterator[SegmentedFrame[AnyFrame]]:
    """Launch each frame before the last one's result is waited for, where that helps."""
    with read:
        running: _Shot[AnyFrame] | None = None
        for one in until_fault(read):
            if isinstance(one, Fault):
                if running is not None:
                    yield _result(segmenter, running, isolate)
                raise one.error
            frame, timings = one
            before, running = running, _launched(segmenter, frame, timings, question, isolate)
            if before is not None:
                yield _result(segmenter, before, isolate)
            if not segmenter.overlaps:
                yield _result(segmenter, running, isolate)
                running = None
        if running is not None:
            yield _result(segmenter, running, isolate)


def _launched(
    segmenter: Segmenter, frame: AnyFrame, timings: Timings, question: Question, isolate: bool
) -> _Shot[AnyFrame]:
    shot = _Shot(frame=frame, timings=timings)
    try:
        own = Timings()  # what waiting for the stream took stands under "decode" already
        image = segmenter.take(pixels_of(frame), timings=own)
        shot.launched = segmenter.launch(image, question, timings, alone=not segmenter.overlaps)
    except Exception as error:
        if not isolate:
            raise
        shot.problem = error_of_item(error)
    return shot


def _result(segmenter: Segmenter, shot: _Shot[AnyFrame], isolate: bool) -> SegmentedFrame[AnyFrame]:
    rgb = pixels_of(shot.frame)
    detections = Detections.empty((rgb.shape[0], rgb.shape[1]))
    if shot.problem is None:
        try:
            detections = segmenter.result(shot.launched)
        except Exception as error:
            if not isolate:
                raise
            shot.problem = error_of_item(error)
    return SegmentedFrame(
        frame=shot.frame, detections=detections, timings=shot.timings, problem=shot.problem
    )


def pixels_of(frame: RgbImage | Picture) -> RgbImage:
    """The picture of a frame."""
    return frame if isinstance(frame, np.ndarray) else frame.image_rgb
