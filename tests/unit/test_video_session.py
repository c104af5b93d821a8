"""A video session on a script: who is followed, what is shown, what is remembered."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from tests.helpers.scripted_tracker import SIZE_HW, ScriptedParts, Thing, picture

from samforge.core.errors import FidelityError, InputError, PromptError, SettingError, ShapeError
from samforge.media import VideoReader, VideoWriter
from samforge.runtime import EncodedImage, Segmenter
from samforge.runtime.follow import follow_video
from samforge.runtime.tracking import (
    META,
    TRANSFORMERS,
    FoundInFrame,
    ObjectPrompt,
    Pending,
    PromptAt,
    Rules,
    TrackingSettings,
    VideoFrame,
    VideoSession,
    facts_from_sessions,
    track_video,
)

CAT = Thing((1, 1, 5, 5))
DOG = Thing((9, 9, 14, 14), phrase="dog", score=0.8)
LATE = Thing((9, 1, 13, 5), away=range(3))
CENTRE_OF_DOG = [[11.5 * 3, 11.5 * 2]]
"""In pixels of a frame of 48 x 32, whose masks have 16 x 16 cells."""


def table(frames: list[VideoFrame]) -> list[tuple[int, list[int], list[str], list[int]]]:
    """What frames show: number, ids, labels, pixels."""
    return [
        (
            frame.index,
            frame.detections.ids.tolist(),
            list(frame.detections.labels),
            frame.detections.areas.tolist(),
        )
        for frame in frames
    ]


def run(session: VideoSession, frames: range) -> list[VideoFrame]:
    found = [one for frame in frames for one in session.step(picture(frame), frame)]
    return found + session.finish()


def batches(parts: ScriptedParts, name: str) -> list[int]:
    return [objects for part, objects in parts.calls if part == name]


# What is shown


def test_phrases_find_objects_that_keep_their_ids() -> None:
    parts = ScriptedParts([CAT, DOG, LATE])
    found = run(VideoSession(parts, text=["cat", "dog"]), range(20))
    assert [frame.index for frame in found] == list(range(20))
    for frame in found:
        ids = frame.detections.ids.tolist()
        assert ids == ([0, 1] if frame.index < 3 else [0, 1, 2])
        assert frame.detections.labels == ("cat", "dog", "cat")[: len(ids)]
        assert frame.detections.size_hw == SIZE_HW
        assert frame.detected
    # 4 x 4 and 5 x 5 cells of 3 x 2 pixels, with rounded corners.
    assert found[5].detections.areas.tolist() == [94, 148, 94]
    assert found[5].detections.boxes_xyxy.tolist()[0] == [3, 2, 15, 10]
    assert found[5].detections.scores.tolist() == pytest.approx([0.9, 0.8, 0.9])
    assert found[0].detections.best_scores == pytest.approx({"cat": 0.9, "dog": 0.8})
    # All phrases in one call a frame.
    assert parts.asked == [(frame, ("cat", "dog")) for frame in range(20)]


def test_frames_wait_until_nothing_on_them_can_be_removed() -> None:
    # Seen twice by the detector, then never again: removed on its 8th unmatched frame.
    ghost = replace(DOG, phrase="cat", missed=range(2, 99))
    session = VideoSession(ScriptedParts([CAT, ghost]), text="cat")
    left = [len(session.step(picture(frame), frame)) for frame in range(15)]
    assert left == [0] * 14 + [1]
    assert session.ids == (0,)
    rest = session.finish()
    assert [frame.index for frame in rest] == list(range(1, 15))
    assert [frame.removed for frame in rest if frame.removed] == [(1,)]
    assert all(frame.detections.ids.tolist() == [0] for frame in rest)


def test_without_a_delay_frames_come_at_once_and_ghosts_with_them() -> None:
    ghost = replace(DOG, phrase="cat", missed=range(2, 99))
    settings = TrackingSettings(delay=0)
    found = run(VideoSession(ScriptedParts([CAT, ghost]), text="cat", settings=settings), range(15))
    assert [frame.detections.ids.tolist() for frame in found] == [[0, 1]] * 9 + [[0]] * 6
    assert next(frame.index for frame in found if frame.removed == (1,)) == 9


def test_objects_of_a_phrase_share_no_pixel() -> None:
    # The second is matched to a detection of its own, and overlaps the first by less than 0.1.
    first, second = Thing((0, 0, 8, 8)), Thing((7, 7, 15, 15), score=0.8)
    found = run(VideoSession(ScriptedParts([first, second]), text="cat"), range(3))
    dense = found[2].detections.masks.dense()
    assert dense.shape == (2, *SIZE_HW)
    assert not (dense[0] & dense[1]).any()
    assert dense.sum() < 2 * 8 * 8 * 6


def test_a_stream_and_a_file_give_the_same() -> None:
    things = [replace(CAT, step=1), DOG, LATE, replace(LATE, missed=range(5, 99))]
    frames = [picture(frame) for frame in range(40)]
    file = list(track_video(ScriptedParts(things), frames, text=["cat", "dog"]))
    stream = list(track_video(ScriptedParts(things), iter(frames), text=["cat", "dog"]))
    single = run(VideoSession(ScriptedParts(things), text=["cat", "dog"]), range(40))
    assert table(file) == table(stream) == table(single)
    for one, two in zip(file, single, strict=True):
        assert one.detections.masks == two.detections.masks
    assert len(file) == 40


def test_the_detector_every_fourth_frame_is_said() -> None:
    parts = ScriptedParts([CAT, replace(DOG, phrase="cat", away=range(5))])
    settings = TrackingSettings(detect_every=4)
    found = run(VideoSession(parts, text="cat", settings=settings), range(12))
    assert [frame.index for frame in found if frame.detected] == [0, 4, 8]
    assert [frame for frame, _ in parts.asked] == [0, 4, 8]
    # It appears on frame 5, and is found on frame 8.
    assert [len(frame.detections) for frame in found] == [1] * 8 + [2] * 4


def test_more_phrases_later() -> None:
    parts = ScriptedParts([CAT, DOG])
    session = VideoSession(parts, text="cat", settings=TrackingSettings(detect_every=10))
    for frame in range(3):
        session.step(picture(frame))
    session.add_text(["dog", "cat"])
    assert session.phrases == ("cat", "dog")
    found = run(session, range(3, 5))
    # They are looked for at once, whatever the number of the frame.
    assert [frame for frame, _ in parts.asked] == [0, 3]
    assert [frame.detections.labels for frame in found[-2:]] == [("cat", "dog")] * 2


def test_more_objects_than_allowed_keeps_the_best() -> None:
    things = [
        Thing((5 * at, 0, 5 * at + 4, 4), score=score) for at, score in enumerate((0.75, 0.9, 0.8))
    ]
    settings = TrackingSettings(most_objects=2)
    session = VideoSession(ScriptedParts(things), text="cat", settings=settings)
    session.step(picture(0))
    with pytest.raises(SettingError, match="2 objects live, and 2 may"):
        session.add(ObjectPrompt(points=[[1, 1]]))
    (found,) = session.finish()
    assert found.detections.scores.tolist() == pytest.approx([0.9, 0.8])
    assert found.detections.cut_off == 1


def test_transformers_rules_run_too() -> None:
    settings = TrackingSettings(rules=TRANSFORMERS)
    found = run(VideoSession(ScriptedParts([CAT, LATE]), text="cat", settings=settings), range(34))
    assert [len(frame.detections) for frame in found] == [1] * 3 + [2] * 31


@pytest.mark.parametrize("rules", [META, TRANSFORMERS], ids=lambda one: one.reference)
def test_what_a_user_shows_keeps_its_mask_where_a_rule_removes_others(rules: Rules) -> None:
    """transformers gives masks behind a removed object to the next id: it knows no users' objects.

    Objects of the phrase before and behind the user's one are found once and never again.
    """
    things = [replace(CAT, missed=range(1, 99)), DOG, replace(LATE, missed=range(4, 99))]
    settings = TrackingSettings(rules=rules, delay=0)
    session = VideoSession(ScriptedParts(things), text="cat", settings=settings)
    session.step(picture(0))
    session.add(ObjectPrompt(points=CENTRE_OF_DOG), label="my dog")
    shown = [frame.detections for number in range(1, 14) for frame in session.step(picture(number))]
    assert session.ids == (1,)
    dogs = [one[[one.labels.index("my dog")]].masks for one in shown]
    assert all(one == dogs[0] for one in dogs)


# Prompts


@pytest.mark.parametrize(
    "prompt",
    [
        ObjectPrompt(points=CENTRE_OF_DOG),
        ObjectPrompt(points=[*CENTRE_OF_DOG, [1, 1]], labels=[1, 0]),
        ObjectPrompt(box_xyxy=[27, 18, 42, 28]),
        ObjectPrompt(mask=np.kron(DOG.mask(0) > 0, np.ones((2, 3), np.bool_))),
    ],
    ids=["point", "points", "box", "mask"],
)
def test_an_object_that_is_shown_is_followed(prompt: ObjectPrompt) -> None:
    session = VideoSession(ScriptedParts([CAT, replace(DOG, step=0)]))
    (first,) = session.step(picture(0))
    assert len(first.detections) == 0
    answer = session.add(prompt, label="my dog")
    assert (answer.id, answer.frame.index) == (0, 0)
    assert answer.frame.detections.labels == ("my dog",)
    found = run(session, range(1, 4))
    # Without phrases nothing waits, and nothing was looked for.
    assert [(frame.index, frame.detected) for frame in found] == [
        (1, False),
        (2, False),
        (3, False),
    ]
    assert [frame.detections.areas.tolist() for frame in found] == [[148]] * 3
    assert found[0].detections.scores.tolist() == pytest.approx([1 / (1 + np.exp(-5))])


def test_shown_and_found_objects_together() -> None:
    parts = ScriptedParts([CAT, DOG])
    session = VideoSession(parts, text="cat")
    session.step(picture(0))
    shown = session.add(ObjectPrompt(points=CENTRE_OF_DOG), label="dog")
    # It waits with the frame, which has not left.
    assert shown.frame.detections.ids.tolist() == [0, 1]
    found = run(session, range(1, 40))
    assert table(found[:1]) == [(0, [0, 1], ["cat", "dog"], [94, 148])]
    # No detection ever reaches it, and no rule removes it.
    assert all(frame.detections.ids.tolist() == [0, 1] for frame in found)
    assert "memory_encoder" in {part for part, _ in parts.calls}
    assert "memory_encoder_text" in {part for part, _ in parts.calls}


def test_an_object_named_like_a_phrase_is_not_found_again() -> None:
    session = VideoSession(ScriptedParts([CAT, replace(DOG, missed=range(1))]), text=["cat", "dog"])
    session.step(picture(0))
    session.add(ObjectPrompt(points=CENTRE_OF_DOG), label="dog")
    found = run(session, range(1, 30))
    assert all(frame.detections.ids.tolist() == [0, 1] for frame in found)


def test_ids_are_never_given_again() -> None:
    session = VideoSession(ScriptedParts([CAT, DOG]))
    session.step(picture(0))
    first = session.add(ObjectPrompt(points=CENTRE_OF_DOG)).id
    session.remove(first)
    second = session.add(ObjectPrompt(points=CENTRE_OF_DOG)).id
    assert (first, second, session.ids) == (0, 1, (1,))
    session.step(picture(1))
    with pytest.raises(PromptError, match=r"Object 0 has ended\. Those that live: 1"):
        session.correct(0, ObjectPrompt(points=[[1, 1]]))
    with pytest.raises(PromptError, match="Object 7 is unknown"):
        session.remove(7)


def test_what_is_removed_leaves_the_frames_that_wait() -> None:
    session = VideoSession(ScriptedParts([CAT, DOG]), text=["cat", "dog"])
    for frame in range(5):
        session.step(picture(frame))
    session.remove(0)
    assert [frame.detections.labels for frame in session.finish()] == [("dog",)] * 5


def test_an_earlier_frame_is_prompted_where_it_can_be_read_again() -> None:
    frames = [picture(frame) for frame in range(10)]
    session = VideoSession(ScriptedParts([CAT, DOG]), frames=frames)
    for frame in range(6):
        session.step(frames[frame])
    answer = session.add(ObjectPrompt(points=CENTRE_OF_DOG), label="dog", frame=2)
    assert table(list(answer.revised)) == [(at, [0], ["dog"], [148]) for at in (2, 3, 4, 5)]
    assert answer.frame.index == 2
    (bank,) = session.banks.values()
    assert bank.conditioning == (2,)
    assert list(bank.ordinary) == [3, 4, 5]
    assert table(session.step(frames[6])) == [(6, [0], ["dog"], [148])]


def test_an_earlier_frame_that_waits_is_changed_where_it_is() -> None:
    frames = [picture(frame) for frame in range(10)]
    session = VideoSession(ScriptedParts([CAT, DOG]), text="cat", frames=frames)
    for frame in range(6):
        session.step(frames[frame])
    answer = session.add(ObjectPrompt(points=CENTRE_OF_DOG), label="dog", frame=2)
    assert answer.revised == ()
    found = session.finish()
    assert [frame.detections.ids.tolist() for frame in found] == [[0]] * 2 + [[0, 1]] * 4


def test_a_correction_of_the_newest_frame_conditions_it() -> None:
    session = VideoSession(ScriptedParts([replace(CAT, missed=range(4, 9)), DOG]), text="cat")
    for frame in range(4):
        session.step(picture(frame))
    session.correct(0, ObjectPrompt(points=CENTRE_OF_DOG))  # it is the dog that was meant
    found = run(session, range(4, 6))
    assert [frame.detections.areas.tolist() for frame in found] == [[94]] * 3 + [[148]] * 3


# Directions


def test_backwards_and_both_ways() -> None:
    frames = [picture(frame) for frame in range(9)]
    shown = [PromptAt(frame=4, prompt=ObjectPrompt(points=CENTRE_OF_DOG), label="dog")]
    things = [CAT, DOG]
    back = track_video(ScriptedParts(things), frames, prompts=shown, direction="backward", start=4)
    assert table(list(back)) == [(at, [0], ["dog"], [148]) for at in (4, 3, 2, 1, 0)]
    both = track_video(ScriptedParts(things), frames, prompts=shown, direction="both", start=4)
    order = [4, 5, 6, 7, 8, 3, 2, 1, 0]
    assert table(list(both)) == [(at, [0], ["dog"], [148]) for at in order]


def test_both_ways_by_text_keep_ids_apart() -> None:
    frames = [picture(frame) for frame in range(30)]
    early = Thing((9, 1, 13, 5), away=range(5, 30))
    late = Thing((1, 9, 5, 13), away=range(20))
    ghost = Thing((9, 9, 13, 13), missed=range(13, 30))
    parts = ScriptedParts([CAT, early, late, ghost])
    found = list(track_video(parts, frames, text="cat", direction="both", start=12))
    assert [frame.index for frame in found] == [*range(12, 30), *range(11, -1, -1)]
    ids = {frame.index: frame.detections.ids.tolist() for frame in found}
    # 1, the ghost, ended on the way forwards; it is found anew going back, as another object.
    assert ids[12] == [0]
    assert ids[29] == [0, 2]
    assert ids[11] == [0, 3]
    assert ids[0] == [0, 3, 4]


def test_a_session_turns_back_in_the_middle() -> None:
    session = VideoSession(ScriptedParts([CAT, DOG]), text="cat")
    for frame in range(150):
        session.step(picture(frame))
    back = session.turned()
    found = [one for frame in range(149, 99, -1) for one in back.step(picture(frame - 1))]
    assert found[0].index == 148
    assert all(frame.detections.ids.tolist() == [0] for frame in [*found, *back.finish()])
    assert back.index == 99
    assert len(session.finish()) == 14


def test_a_live_source_cannot_go_backwards() -> None:
    stream = (picture(frame) for frame in range(3))
    with pytest.raises(SettingError, match="A live source is read once"):
        track_video(ScriptedParts([CAT]), stream, text="cat", direction="backward")
    assert len(list(track_video(ScriptedParts([CAT]), stream, text="cat"))) == 3
    with pytest.raises(SettingError, match="Give one of forward, backward, both"):
        track_video(ScriptedParts([CAT]), [], text="cat", direction="up")


# How the parts are called


def test_objects_of_equal_memories_go_in_one_call() -> None:
    things = [
        Thing((4 * (at % 4), 4 * (at // 4), 4 * (at % 4) + 3, 4 * (at // 4) + 3)) for at in range(7)
    ]
    parts = ScriptedParts([*things, Thing((12, 12, 15, 15), away=range(2))])
    run(VideoSession(parts, text="cat"), range(6))
    # Frame 2 has a newcomer; from then on there are two groups.
    assert batches(parts, "memory_attention") == [7, 7, 7, 1, 7, 1, 7, 1]
    assert batches(parts, "memory_encoder_text") == [7, 7, 8, 8, 8]
    assert batches(parts, "memory_encoder") == [7, 1]


def test_calls_stay_within_what_the_parts_take() -> None:
    things = [
        Thing((4 * (at % 4), 4 * (at // 4), 4 * (at % 4) + 3, 4 * (at // 4) + 3)) for at in range(7)
    ]
    parts = ScriptedParts(things, most_objects=3)
    found = run(VideoSession(parts, text="cat"), range(2))
    assert [len(frame.detections) for frame in found] == [7, 7]
    assert batches(parts, "memory_attention") == [3, 3, 1]
    assert batches(parts, "mask_prompt") == [3, 3, 1]


@pytest.mark.parametrize("frames", [1500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_ten_thousand_frames_remember_no_more(frames: int) -> None:
    parts = ScriptedParts([CAT, replace(DOG, phrase="cat", away=range(600, 1200))])
    session = VideoSession(parts, text="cat")
    sizes = {}
    for frame in range(frames):
        session.step(picture(frame))
        parts.calls.clear()
        parts.asked.clear()
        if frame % 100 == 99:
            sizes[frame] = session.size_bytes
    assert session.ids == (0, 1)
    assert max(sizes.values()) <= 2 * (11 * 100 + 21 * 8)
    assert sizes[frames - 1] == sizes[199]
    assert len(session._state.waiting) == 14


# Save and resume


def test_a_saved_session_goes_on_as_if_nothing_were(tmp_path: Path) -> None:
    things = [replace(CAT, step=1), LATE, replace(LATE, missed=range(5, 99)), DOG]
    whole = VideoSession(ScriptedParts(things), text="cat")
    part = VideoSession(ScriptedParts(things), text="cat")
    for session in (whole, part):
        for frame in range(8):
            session.step(picture(frame))
        session.add(ObjectPrompt(points=CENTRE_OF_DOG), label="dog")
    part.save(tmp_path / "session.npz")
    again = VideoSession.from_file(tmp_path / "session.npz", ScriptedParts(things))
    assert again.ids == whole.ids
    wanted, found = run(whole, range(8, 40)), run(again, range(8, 40))
    assert table(found) == table(wanted)
    assert [frame.index for frame in found] == list(range(40))
    for one, two in zip(found, wanted, strict=True):
        assert one.detections.masks == two.detections.masks
        assert one.detections.scores.tolist() == two.detections.scores.tolist()


def test_prompts_of_a_frame_are_remembered_together_whatever_else_is_asked(tmp_path: Path) -> None:
    """Saving, turning and a prompt that fails do not part those that were given before."""

    def save(session: VideoSession) -> None:
        session.save(tmp_path / "session.npz")

    def turn(session: VideoSession) -> None:
        session.turned()

    def fail(session: VideoSession) -> None:
        with pytest.raises(PromptError, match="is not on the frame"):
            session.add(ObjectPrompt(points=[[999, 0]]), frame=0)

    for deed in (save, turn, fail):
        parts = ScriptedParts([CAT, DOG])
        session = VideoSession(parts, frames=[picture(0), picture(1)])
        session.step(picture(0))
        session.step(picture(1))
        session.add(ObjectPrompt(points=[[9, 6]]), label="cat")
        deed(session)
        session.add(ObjectPrompt(points=CENTRE_OF_DOG), label="dog")
        session.step(picture(2))
        assert batches(parts, "memory_encoder")[-3:][:2][-1] == 2, deed.__name__


def test_a_session_of_another_bundle_is_refused(tmp_path: Path) -> None:
    session = VideoSession(ScriptedParts([CAT]), text="cat")
    session.step(picture(0))
    path = tmp_path / "session.npz"
    session.save(path)
    with pytest.raises(InputError, match=r"session of another bundle \(0123456789ab…"):
        VideoSession.from_file(path, ScriptedParts([CAT], digest="f" * 16))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="cannot be read as a video session"):
        VideoSession.from_file(path, ScriptedParts([CAT]))
    with pytest.raises(InputError, match="cannot be read as a video session"):
        VideoSession.from_file(tmp_path / "none.npz", ScriptedParts([CAT]))


def test_a_saved_nan_is_refused(tmp_path: Path) -> None:
    session = VideoSession(ScriptedParts([CAT]), text="cat")
    session.step(picture(0))
    path = tmp_path / "session.npz"
    session.save(path)
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    arrays["0/0/pointer"][0] = np.nan
    np.savez(path, **arrays)
    with pytest.raises(InputError, match="0/0/pointer holds infinity or NaN"):
        VideoSession.from_file(path, ScriptedParts([CAT]))


# Bad input: nothing done so far is lost


def unchanged(session: VideoSession) -> list[VideoFrame]:
    """Go on to frame 5 and give all frames."""
    return run(session, range((session.index or 0) + 1, 6))


@pytest.fixture
def started() -> VideoSession:
    session = VideoSession(ScriptedParts([CAT, DOG]), text="cat")
    for frame in range(3):
        session.step(picture(frame))
    return session


@pytest.mark.parametrize(
    ("act", "kind", "words"),
    [
        (
            lambda session: session.add(ObjectPrompt(points=[[1, 1]]), frame=3),
            PromptError,
            "Frame 3 was not read yet: this session has come from frame 0 to 2",
        ),
        (
            lambda session: session.add(ObjectPrompt(points=[[1, 1]]), frame=1),
            SettingError,
            "Frame 1 has passed, and frames of a live source cannot be read again",
        ),
        (
            lambda session: session.correct(5, ObjectPrompt(points=[[1, 1]])),
            PromptError,
            "Object 5 is unknown. Those that live: 0",
        ),
        (
            lambda session: session.add(ObjectPrompt(points=[[49, 1]])),
            PromptError,
            r"The point \(49, 1\) is not on the frame, which is 48 wide and 32 high",
        ),
        (
            lambda session: session.add(ObjectPrompt(points=[[1, 1]], labels=[1, 0])),
            PromptError,
            "There are 1 points and labels of the shape",
        ),
        (
            lambda session: session.add(ObjectPrompt(points=[[1, 1]] * 17)),
            PromptError,
            "This bundle takes 16 points of an object",
        ),
        (
            lambda session: session.add(ObjectPrompt(box_xyxy=[5, 5, 5, 9])),
            PromptError,
            "has no area",
        ),
        (
            lambda session: session.add(ObjectPrompt(mask=np.zeros((16, 16), np.bool_))),
            ShapeError,
            r"A mask has the frame's size \(32, 48\) \(H, W\), got \(16, 16\)",
        ),
        (
            lambda session: session.step(picture(3, (32, 32))),
            ShapeError,
            r"Frame 3 is \(32, 32\) \(H, W\), and those before are \(32, 48\)",
        ),
        (
            lambda session: session.step(picture(2), 2),
            SettingError,
            "Frame 2 was given after frame 2",
        ),
        (lambda session: session.add_text([]), PromptError, "The list of phrases is empty"),
    ],
)
def test_bad_input_changes_nothing(
    started: VideoSession, act: object, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        act(started)
    assert table(unchanged(started)) == [(frame, [0], ["cat"], [94]) for frame in range(6)]


def test_a_mask_and_points_exclude_each_other() -> None:
    with pytest.raises(PromptError, match="they exclude each other"):
        ObjectPrompt(mask=np.zeros((4, 4), np.bool_), points=[[1, 1]])
    with pytest.raises(PromptError, match="Show the object"):
        ObjectPrompt()
    with pytest.raises(PromptError, match="labels came without points"):
        ObjectPrompt(box_xyxy=[0, 0, 1, 1], labels=[1])


def test_nothing_can_be_prompted_before_the_first_frame() -> None:
    session = VideoSession(ScriptedParts([CAT]))
    with pytest.raises(PromptError, match=r"No frame was read yet\. Call step first"):
        session.add(ObjectPrompt(points=[[1, 1]]))


def test_a_memory_that_is_not_a_number() -> None:
    parts = ScriptedParts([CAT, DOG], poisoned={2})
    session = VideoSession(parts, text="cat")
    for frame in range(3):
        session.step(picture(frame))
    with pytest.raises(FidelityError, match=r"objects \[0\] holds NaN on frame 3"):
        session.step(picture(3))
    assert session.index == 2
    assert table(session.finish()) == [(frame, [0], ["cat"], [94]) for frame in range(3)]
    with pytest.raises(SettingError, match="The session was finished"):
        session.step(picture(3))


@dataclass
class Overflowing(ScriptedParts):
    """Detections or pointers of a frame hold what is no number, or none that is finite."""

    at: int = 0
    value: float = math.nan
    what: str = "masks"

    def begin_detect(
        self, encoded: EncodedImage, phrases: tuple[str, ...], thresholds: Sequence[float]
    ) -> Pending[FoundInFrame]:
        return super().begin_detect(encoded, phrases, thresholds).then(self._broken(encoded))

    def _broken(self, encoded: EncodedImage) -> Callable[[FoundInFrame], FoundInFrame]:
        here = self.what == "masks" and int(encoded.features["high_res_0"][0]) == self.at

        def broken(found: FoundInFrame) -> FoundInFrame:
            logits = found.masks.host().copy()
            logits[-1, 0, 0] = self.value
            return replace(found, masks=self.masks(logits))

        return broken if here else lambda found: found

    def _mask_prompt(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        found = super()._mask_prompt(inputs)
        if self.what in found and int(inputs["high_res_0"][0]) == self.at:
            found[self.what][:] = self.value
        return found


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("rules", [META, TRANSFORMERS], ids=lambda one: one.reference)
def test_a_detection_that_is_not_a_number(value: float, rules: Rules) -> None:
    """Not even where it would only confirm an object, or be too unsure to begin one."""
    late = replace(LATE, phrase="cat", away=range(16), score=0.6)
    for things, at in (([CAT], 5), ([CAT], 16), ([CAT, late], 16)):
        parts = Overflowing(things, at=at, value=value)
        settings = TrackingSettings(rules=rules, delay=0)
        session = VideoSession(parts, text="cat", settings=settings)
        for frame in range(at):
            session.step(picture(frame))
        with pytest.raises(FidelityError, match="detector's masks for 'cat' hold infinity or NaN"):
            session.step(picture(at))
        assert session.index == at - 1
        (frame_behind,) = session.step(picture(at + 1))
        assert frame_behind.detections.ids.tolist() == [0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("what", ["object_pointer", "object_score"])
def test_a_newborn_whose_pointer_is_not_a_number(what: str, value: float, tmp_path: Path) -> None:
    """It would be remembered, and a saved session refused."""
    kind = "infinity" if value == math.inf else "NaN"
    parts = Overflowing([CAT, LATE], at=3, value=value, what=what)
    session = VideoSession(parts, text="cat")
    for frame in range(3):
        session.step(picture(frame))
    with pytest.raises(FidelityError, match=f"holds {kind}"):
        session.step(picture(3))
    assert session.ids == (0,)
    session.save(tmp_path / "session.npz")
    assert VideoSession.from_file(tmp_path / "session.npz", parts).ids == (0,)


def test_a_clip_of_one_frame() -> None:
    settings = TrackingSettings(length=1)
    found = run(VideoSession(ScriptedParts([CAT]), text="cat", settings=settings), range(1))
    assert table(found) == [(0, [0], ["cat"], [94])]
    assert VideoSession(ScriptedParts([CAT]), text="cat").finish() == []


def test_no_object_for_a_thousand_frames() -> None:
    parts = ScriptedParts([replace(CAT, away=range(1000))])
    found = run(VideoSession(parts, text="cat"), range(1002))
    assert [len(frame.detections) for frame in found] == [0] * 1000 + [1] * 2
    assert batches(parts, "memory_attention") == [1]


def test_a_truncated_video_is_followed_as_far_as_it_goes(tmp_path: Path) -> None:
    whole = tmp_path / "whole.mp4"
    with VideoWriter(whole, SIZE_HW) as writer:
        noise = np.random.default_rng(0)
        for number in range(40):
            image = noise.integers(0, 256, (*SIZE_HW, 3), np.uint8)
            writer.write(image, Fraction(number, 30))
    content = whole.read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(content[: len(content) * 2 // 3])
    parts = ScriptedParts([CAT, DOG])
    segmenter = cast(
        Segmenter, SimpleNamespace(tracker_parts=lambda: parts, processor="script", overlaps=False)
    )
    with VideoReader(cut) as reader, follow_video(segmenter, reader.frames(), text="cat") as shots:
        ids = [shot.detections.ids.tolist() for shot in shots]
    # Those that waited out their hot start came out, too.
    assert 5 < len(ids) < 40
    assert ids == [[0]] * len(ids)
    assert reader.problem is not None
    assert f"ends after {len(ids)} frames" in reader.problem


class Breaking(ScriptedParts):
    """Frame 3 cannot be encoded, with an error that is none of samforge's."""

    def encode(self, image: np.ndarray) -> EncodedImage:
        encoded = super().encode(image)
        if encoded.features["high_res_0"][0] == 3:
            raise RuntimeError("broken")
        return encoded

    def run(self, part: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        time.sleep(0.005)  # the next frame is read meanwhile
        return super().run(part, inputs)


def followed(parts: ScriptedParts, count: int, **settings: Any) -> Any:
    """A stream through a device that encodes the next frame meanwhile."""
    segmenter = SimpleNamespace(
        tracker_parts=lambda: parts,
        processor="script",
        overlaps=True,
        encode=lambda image: replace(parts.encode(image), digest=parts.digest),
    )
    frames = [picture(number) for number in range(count)]
    return follow_video(cast(Segmenter, segmenter), frames, text="cat", **settings)


def test_a_frame_that_cannot_be_encoded_ahead_fails_in_its_own_place() -> None:
    shots = list(followed(Breaking([CAT]), 8, isolate=True))
    assert [int(shot.frame[0, 0, 1]) for shot in shots] == list(range(8))
    assert [shot.problem is not None for shot in shots] == [number == 3 for number in range(8)]
    assert [shot.detections.ids.tolist() for shot in shots] == [
        [] if number == 3 else [0] for number in range(8)
    ]
    with pytest.raises(RuntimeError, match="broken"):
        list(followed(Breaking([CAT]), 8))


def test_a_prompt_that_does_not_fit_loses_no_frame_that_was_decided() -> None:
    outside = PromptAt(frame=17, prompt=ObjectPrompt(points=[[1000, 1000]]))
    shots = list(followed(ScriptedParts([CAT]), 20, prompts=[outside], isolate=True))
    assert [shot.problem is not None for shot in shots] == [number == 17 for number in range(20)]
    assert shots[3].detections.ids.tolist() == [0]
    pictures = [picture(number) for number in range(20)]
    given: list[VideoFrame] = []
    with pytest.raises(PromptError):
        given.extend(track_video(ScriptedParts([CAT]), pictures, text="cat", prompts=[outside]))
    assert [frame.index for frame in given] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"delay": -1}, "delay is -1. Give a whole number from 0 up"),
        ({"detect_every": 0}, "detect_every is 0"),
        ({"most_objects": True}, "most_objects is True"),
        ({"length": 0}, "length is 0"),
    ],
)
def test_settings_are_checked(change: dict[str, int], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        TrackingSettings(**change)


@pytest.mark.parametrize("most", [None, 17])
def test_parts_that_take_few_pointers_get_the_newest(most: int | None) -> None:
    parts = ScriptedParts([CAT], most_pointers=most)
    settings = TrackingSettings(rules=TRANSFORMERS)
    session = VideoSession(parts, text="cat", settings=settings)
    for frame in range(120):
        session.step(picture(frame))
    # Conditioning frames are 0, 16, 32 and so on: one of them, or none, is among the last fifteen.
    wanted = [
        len(range(0, frame, 16)) + sum(at % 16 > 0 for at in range(max(0, frame - 15), frame))
        for frame in range(1, 120)
    ]
    assert max(wanted) == 22
    assert parts.pointers == [min(count, most or count) for count in wanted]


def test_tracking_needs_its_parts() -> None:
    with pytest.raises(SettingError, match=r"point_decoder, mask_prompt, .* are missing"):
        facts_from_sessions({}, image_size=224, digest="")


def test_rules_beyond_the_parts_are_refused() -> None:
    facts = replace(ScriptedParts([]).facts, most_memories=6)
    with pytest.raises(SettingError, match="The rules attend to 10 memories"):
        TrackingSettings(rules=META).settled(facts)
