"""Callers fill their buffers again: what was found belongs to the picture that was in them then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

import samforge
from samforge.core.errors import ShapeError
from samforge.runtime import Segmenter, Thresholds
from samforge.runtime.stream import segment_video

Rgb = npt.NDArray[np.uint8]
LOW = Thresholds(score=0.0)
COUNT = 10


@pytest.fixture
def segmenter(fake_bundle: Callable[..., samforge.Bundle]) -> Segmenter:
    return samforge.load(fake_bundle())


def picture(number: int) -> Rgb:
    return np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)


@dataclass(frozen=True)
class Frozen:
    image_rgb: Rgb
    number: int


class Loose:
    def __init__(self, image_rgb: Rgb, number: int) -> None:
        self.image_rgb, self.number = image_rgb, number


def arrays() -> Iterator[Rgb]:
    """A camera with one buffer, faster than the segmenter."""
    buffer = np.empty((40, 50, 3), np.uint8)
    for number in range(COUNT):
        buffer[:] = picture(number)
        yield buffer
    buffer[:] = 0


def two_buffers() -> Iterator[Rgb]:
    buffers = np.empty((2, 40, 50, 3), np.uint8)
    for number in range(COUNT):
        buffers[number % 2] = picture(number)
        yield buffers[number % 2]
    buffers[:] = 0


def views() -> Iterator[Rgb]:
    """Of a buffer in BGR order, as OpenCV's cameras give it."""
    for rgb in arrays():
        yield rgb[:, :, ::-1][:, :, ::-1]


def dataclasses_() -> Iterator[Frozen]:
    for number, rgb in enumerate(arrays()):
        yield Frozen(image_rgb=rgb, number=number)


def one_object() -> Iterator[Loose]:
    shot = Loose(np.empty((40, 50, 3), np.uint8), 0)
    for number in range(COUNT):
        shot.image_rgb[:] = picture(number)
        shot.number = number
        yield shot
    shot.image_rgb[:] = 0


@pytest.mark.parametrize("camera", [arrays, two_buffers, views, dataclasses_, one_object])
def test_every_frame_has_its_own_masks(
    segmenter: Segmenter, camera: Callable[[], Iterator[Rgb]]
) -> None:
    shots = []
    for shot in segment_video(segmenter, camera(), text="star", thresholds=LOW, ahead=3):
        time.sleep(0.002)  # time enough for the camera to run ahead
        shots.append(shot)
    assert len(shots) == COUNT
    for number, shot in enumerate(shots):
        frame = shot.frame
        rgb = frame if isinstance(frame, np.ndarray) else frame.image_rgb
        assert np.array_equal(rgb, picture(number)), "what is drawn over is the frame itself"
        assert getattr(frame, "number", number) == number
        alone = segmenter.predict(picture(number), text="star", threshold=0.0)
        assert np.array_equal(shot.detections.scores, alone.scores)
        assert np.array_equal(shot.detections.masks, alone.masks)


def test_frames_of_a_list_are_not_copied(segmenter: Segmenter) -> None:
    frames = [picture(number) for number in range(3)]
    shots = list(segment_video(segmenter, frames, text="star"))
    assert all(shot.frame is frame for shot, frame in zip(shots, frames, strict=True))


def test_frames_that_own_their_pixels_are_not_copied(segmenter: Segmenter) -> None:
    class Owning(Loose):
        owns_pixels = True

    frames = [Owning(picture(number), number) for number in range(3)]
    shots = list(segment_video(segmenter, iter(frames), text="star"))
    assert all(shot.frame is frame for shot, frame in zip(shots, frames, strict=True))


def test_a_frame_that_cannot_be_copied_says_so(segmenter: Segmenter) -> None:
    class Property:
        @property
        def image_rgb(self) -> Rgb:
            return picture(0)

    with pytest.raises(ShapeError, match="Frames of the type Property cannot be copied"):
        list(segment_video(segmenter, iter([Property()]), text="star"))


def test_encoded_images_do_not_follow_their_array(segmenter: Segmenter) -> None:
    rgb = picture(0)
    encoded = segmenter.encode(rgb)
    before = segmenter.predict(encoded, text="star", threshold=0.0)
    rgb[:] = 0
    after = segmenter.predict(encoded, text="star", threshold=0.0)
    assert np.array_equal(before.scores, after.scores)
