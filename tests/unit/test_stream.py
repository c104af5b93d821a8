"""Streams of frames: in order, overlapped, within a bound, and stopped when nobody listens."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import samforge
from samforge.core.errors import PromptError, SettingError, ShapeError
from samforge.runtime import Segmenter, Thresholds
from samforge.runtime.prefetch import Prefetcher
from samforge.runtime.stream import segment_video

Rgb = npt.NDArray[np.uint8]
LOW = Thresholds(score=0.1)


@pytest.fixture
def segmenter(fake_bundle: Callable[..., samforge.Bundle]) -> Segmenter:
    return samforge.load(fake_bundle())


def pictures(count: int) -> list[Rgb]:
    return [np.full((40, 50, 3), i, np.uint8) for i in range(count)]


def _is_over(name: str) -> bool:
    """Whether every thread of that name ends within a second."""
    for thread in threading.enumerate():
        if thread.name == f"samforge-{name}":
            thread.join(1)
    return not any(thread.name == f"samforge-{name}" for thread in threading.enumerate())


def test_each_frame_is_segmented_as_by_itself(segmenter: Segmenter) -> None:
    frames = pictures(9)
    shots = list(segment_video(segmenter, frames, text=["star", "circle"], thresholds=LOW))
    assert [shot.frame is frame for shot, frame in zip(shots, frames, strict=True)] == [True] * 9
    assert sum(len(shot.detections) for shot in shots) > 0
    for shot in shots:
        alone = segmenter.predict(shot.frame, text=["star", "circle"], threshold=0.1)
        assert np.array_equal(shot.detections.masks, alone.masks)
        assert np.array_equal(shot.detections.scores, alone.scores)
        assert shot.detections.labels == alone.labels


def test_each_phrase_has_its_threshold(segmenter: Segmenter) -> None:
    own = [Thresholds(score=0.1), Thresholds(score=1.0)]
    shots = list(segment_video(segmenter, pictures(9), text=["star", "circle"], thresholds=own))
    assert {label for shot in shots for label in shot.detections.labels} == {"star"}
    for shot in shots:
        alone = segmenter.predict(shot.frame, text=["star", "circle"], threshold=[0.1, 1.0])
        assert np.array_equal(shot.detections.scores, alone.scores)
    for few in ([], own[:1]):
        with pytest.raises(PromptError, match=f"2 phrases and {len(few)} thresholds"):
            segment_video(segmenter, pictures(1), text=["star", "circle"], thresholds=few)
    other = [own[0], Thresholds(score=0.1, mask=0.4)]
    with pytest.raises(SettingError, match=r"Give all of them mask=0\.5 and max_detections=None"):
        segment_video(segmenter, pictures(1), text=["star", "circle"], thresholds=other)


def test_text_is_encoded_once(segmenter: Segmenter) -> None:
    shots = list(segment_video(segmenter, pictures(5), text="star"))
    stages = [{s.stage: s for s in shot.timings.stages()} for shot in shots]
    assert [one["text"].calls for one in stages] == [1, 0, 0, 0, 0]
    for one in stages:
        assert list(one) == ["decode", "preprocess", "vision", "text", "detector", "post-process"]


@dataclass(frozen=True)
class Shot:
    image_rgb: Rgb
    number: int


def test_frames_carry_what_they_like(segmenter: Segmenter) -> None:
    frames = [Shot(image_rgb=rgb, number=i) for i, rgb in enumerate(pictures(3))]
    shots = segment_video(segmenter, iter(frames), text="star")
    assert [shot.frame.number for shot in shots] == [0, 1, 2]


def test_memory_is_bounded(segmenter: Segmenter) -> None:
    made = 0

    def endless() -> Iterator[Rgb]:
        nonlocal made
        while True:
            made += 1
            yield np.zeros((8, 8, 3), np.uint8)

    with segment_video(segmenter, endless(), text="star", ahead=2) as stream:
        for taken in range(1, 41):
            next(stream)
            if taken % 10 == 0:
                time.sleep(0.05)  # time enough to run far ahead
                # Two wait before the segmenter and two after it; each thread holds one more.
                assert made - taken <= 2 + 2 + 2 + 1
        assert stream.most_waiting <= 2
    after = made
    time.sleep(0.02)
    assert made == after
    assert _is_over("read")
    assert _is_over("segment")


def test_reading_inference_and_the_caller_overlap() -> None:
    pause = 0.02

    class Slow:
        overlaps = False

        def take(self, image: Rgb, **_: object) -> Rgb:
            return image

        def launch(self, image: Rgb, *_: object, **__: object) -> None:
            time.sleep(pause)

        def result(self, launched: object) -> None:
            return None

    def camera() -> Iterator[Rgb]:
        for rgb in pictures(15):
            time.sleep(pause)
            yield rgb

    start = time.perf_counter()
    for _ in segment_video(Slow(), camera(), text="star"):  # type: ignore[arg-type]
        time.sleep(pause)
    # One after the other it would take 15 * 3 pauses; overlapped 15 and 2 to fill the line.
    assert time.perf_counter() - start < 15 * 2.4 * pause


def test_errors_arrive_in_their_place(segmenter: Segmenter) -> None:
    def broken() -> Iterator[Rgb]:
        yield from pictures(2)
        raise OSError("the camera was unplugged")

    stream = segment_video(segmenter, broken(), text="star")
    assert np.array_equal(next(stream).frame, pictures(2)[0])
    next(stream)
    with pytest.raises(OSError, match="unplugged"):
        next(stream)
    with pytest.raises(StopIteration):
        next(stream)
    frames = [*pictures(1), np.zeros((4, 4), np.float64)]
    with pytest.raises(ShapeError, match="got float64"):
        list(segment_video(_Checks(segmenter), frames, text="star"))
    with pytest.raises(PromptError, match="The list of phrases is empty"):
        segment_video(segmenter, frames, text=[])
    with pytest.raises(SettingError, match=r"ahead is 0\. Give at least 1"):
        segment_video(segmenter, frames, text="star", ahead=0)


class _Checks(Segmenter):
    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__(segmenter._executor, image_size=32, parts=())

    def take(self, image: Any, **settings: Any) -> Any:
        if image.dtype != np.uint8:
            raise ShapeError(f"got {image.dtype}")
        return super().take(image, **settings)


def test_a_dropped_stream_stops_and_closes_its_source(segmenter: Segmenter) -> None:
    closed = threading.Event()

    def camera() -> Iterator[Rgb]:
        try:
            while True:
                yield np.zeros((8, 8, 3), np.uint8)
        finally:
            closed.set()

    for _ in segment_video(segmenter, camera(), text="star"):
        break
    gc.collect()
    assert closed.wait(2)
    assert _is_over("read")
    assert _is_over("segment")


def test_run_ahead_is_an_iterator_with_a_bound() -> None:
    gate = threading.Semaphore(0)
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(6):
            made.append(i)
            yield i

    line = Prefetcher(items(), ahead=3, name="test")
    deadline = time.monotonic() + 2
    while len(made) < 4 and time.monotonic() < deadline:
        gate.acquire(timeout=0.005)
    time.sleep(0.02)
    assert made == [0, 1, 2, 3], "three wait and the thread holds one"
    assert list(line) == [0, 1, 2, 3, 4, 5]
    assert line.most_waiting == 3
    line.close()
    assert _is_over("test")


def test_closing_early_drops_what_waits(tmp_path: Path) -> None:
    line = Prefetcher(iter(range(10)), ahead=2, name="test")
    assert next(line) == 0
    line.close()
    line.close()
    assert list(line) == []
    assert _is_over("test")
