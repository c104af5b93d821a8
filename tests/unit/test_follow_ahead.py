"""What is begun of the next frame changes nothing but when it is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.helpers.scripted_tracker import SIZE_HW, ScriptedParts, Thing, picture

from samforge.core.errors import FidelityError, ShapeError
from samforge.runtime import EncodedImage, ObjectPrompt
from samforge.runtime.pending import Pending
from samforge.runtime.tracking import (
    FoundInFrame,
    TrackingSettings,
    VideoFrame,
    VideoSession,
)

CAT = Thing(box=(1, 1, 5, 5), step=1, missed=range(9, 13))
DOG = Thing(box=(8, 2, 13, 7), phrase="dog", away=range(12, 16))
LATE = Thing(box=(4, 9, 8, 13), phrase="cat", away=range(6))
BIRD = Thing(box=(10, 10, 14, 14), phrase="bird")
THINGS = [CAT, DOG, LATE, BIRD]
FRAMES = 18

Deeds = Mapping[int, Callable[[VideoSession], Any]]
"""What a user does behind a frame."""
DEEDS: Deeds = {
    2: lambda one: one.add(ObjectPrompt(points=[[36, 24]]), label="clicked"),
    5: lambda one: one.correct(1, ObjectPrompt(points=[[30, 8]])),
    7: lambda one: one.add_text("bird"),
    9: lambda one: one.remove(1),
    11: lambda one: one.correct(0, ObjectPrompt(box_xyxy=[36, 2, 47, 10])),
    14: lambda one: one.add(ObjectPrompt(mask=np.eye(*SIZE_HW)), label="drawn"),
}


def encoded(parts: ScriptedParts, image: np.ndarray) -> EncodedImage:
    return replace(parts.encode(image), digest=parts.digest)


class Ahead:
    """Frames in order, each encoded once, whoever asks for it first."""

    def __init__(self, parts: ScriptedParts, numbers: Sequence[int]) -> None:
        self.encoded = [encoded(parts, picture(number)) for number in numbers]
        self.at = 0

    def next(self) -> EncodedImage | None:
        place = self.at + 1
        return self.encoded[place] if place < len(self.encoded) else None


def run(
    parts: ScriptedParts, *, ahead: bool, deeds: Deeds = DEEDS, **settings: Any
) -> list[VideoFrame]:
    session = VideoSession(parts, text=["cat", "dog"], settings=TrackingSettings(**settings))
    numbers = range(FRAMES)
    if settings.get("reverse"):
        numbers = range(FRAMES - 1, -1, -1)
    source = Ahead(parts, numbers)
    left: list[VideoFrame] = []
    for place, number in enumerate(numbers):
        source.at = place
        left += session.step(source.encoded[place], number, ahead=source.next if ahead else None)
        if place in deeds:
            deeds[place](session)
    return left + session.finish()


def told(frames: Sequence[VideoFrame]) -> list[tuple[Any, ...]]:
    return [
        (
            frame.index,
            frame.detections.ids.tolist(),
            frame.detections.labels,
            frame.detections.scores.tolist(),
            frame.detections.masks.dense().tobytes(),
            frame.detected,
            frame.removed,
            frame.born,
            frame.matched,
        )
        for frame in frames
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"delay": 0},
        {"detect_every": 3},
        {"reverse": True},
        {"reverse": True, "detect_every": 4},
    ],
    ids=str,
)
@pytest.mark.parametrize("deeds", [{}, DEEDS], ids=["alone", "with prompts"])
def test_the_results_are_the_same(settings: dict[str, Any], deeds: Deeds) -> None:
    plain, early = ScriptedParts(THINGS), ScriptedParts(THINGS)
    wanted = run(plain, ahead=False, deeds=deeds, **settings)
    found = run(early, ahead=True, deeds=deeds, **settings)
    assert told(found) == told(wanted)
    assert len(found) == FRAMES
    assert sum(len(frame.detections) for frame in found) > FRAMES
    # Where nobody changed anything, all is done once; what a user made vain is done again.
    again = len(early.calls) - len(plain.calls)
    assert again > 0 if deeds else again == 0
    # Only more phrases make what was looked for vain.
    assert len(early.asked) - len(plain.asked) == (1 if deeds and early.asked != plain.asked else 0)


def test_the_next_frame_is_begun_before_this_one_is_drawn() -> None:
    order: list[str] = []

    class Noting(ScriptedParts):
        def begin_detect(
            self, encoded: EncodedImage, phrases: tuple[str, ...], thresholds: Sequence[float]
        ) -> Pending[FoundInFrame]:
            frame = int(encoded.features["high_res_0"][0])
            order.append(f"look {frame}")
            return (
                super()
                .begin_detect(encoded, phrases, thresholds)
                .then(lambda found: (order.append(f"found {frame}"), found)[1])
            )

        def run(self, part: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
            order.append(part)
            return super().run(part, inputs)

        def begin_draw(self, masks: Any, size_hw: tuple[int, int]) -> Any:
            order.append("draw")
            return (
                super()
                .begin_draw(masks, size_hw)
                .then(lambda drawn: (order.append("drawn"), drawn)[1])
            )

    parts = Noting([CAT])
    session = VideoSession(parts, text="cat")
    source = Ahead(parts, range(4))
    for place in range(3):
        source.at = place
        order.clear()
        session.step(source.encoded[place], ahead=source.next)
    assert order == [
        "found 2",
        "look 3",
        "memory_encoder_text",
        "draw",
        "memory_attention",
        "tracking_decoder",
        "drawn",
    ]


def test_an_error_is_raised_in_its_own_step() -> None:
    """Frame 3 cannot be looked at; its memory of frame 5 is not a number; 8 has another size."""

    class Blind(ScriptedParts):
        def begin_detect(
            self, encoded: EncodedImage, phrases: tuple[str, ...], thresholds: Sequence[float]
        ) -> Pending[FoundInFrame]:
            if int(encoded.features["high_res_0"][0]) == 3:
                raise RuntimeError("blind")
            return super().begin_detect(encoded, phrases, thresholds)

    parts = Blind([CAT], poisoned={5})
    session = VideoSession(parts, text="cat", settings=TrackingSettings(delay=0))
    source = Ahead(parts, range(8))
    source.encoded[7] = encoded(parts, picture(7, (10, 20)))
    seen: list[list[int]] = []
    problems: dict[int, type[Exception]] = {}
    for place in range(8):
        source.at = place
        try:
            (frame,) = session.step(source.encoded[place], place, ahead=source.next)
        except (RuntimeError, FidelityError, ShapeError) as error:
            problems[place] = type(error)
        else:
            seen.append([frame.index, *frame.detections.ids.tolist()])
    assert problems == {3: RuntimeError, 6: FidelityError, 7: ShapeError}
    assert seen == [[number, 0] for number in (0, 1, 2, 4, 5)]


def test_another_frame_than_the_one_begun_is_followed_anew() -> None:
    parts = ScriptedParts([CAT])
    session = VideoSession(parts, text="cat", settings=TrackingSettings(delay=0))
    source = Ahead(parts, range(3))
    session.step(source.encoded[0], ahead=source.next)
    (frame,) = session.step(picture(5), 5)
    other = VideoSession(ScriptedParts([CAT]), text="cat", settings=TrackingSettings(delay=0))
    other.step(picture(0))
    (wanted,) = other.step(picture(5), 5)
    assert frame.detections.masks == wanted.detections.masks
    # The same frame under another number is followed as that one.
    again = ScriptedParts([CAT])
    third = VideoSession(again, text="cat")
    third.step(source.encoded[0], ahead=source.next)
    third.step(source.encoded[1], 4)
    assert [name for name, _ in again.calls].count("memory_attention") == 2
    assert len(again.asked) == 2


def test_what_the_call_itself_raises_ends_the_step() -> None:
    parts = ScriptedParts([CAT])
    session = VideoSession(parts, text="cat")

    def broken() -> EncodedImage | None:
        raise RuntimeError("no next frame")

    with pytest.raises(RuntimeError, match="no next frame"):
        session.step(picture(0), ahead=broken)
    assert session.index is None
    session.step(picture(0))
    assert session.index == 0
