"""Which frames are attended to, and that a bounded bank attends to the same."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samforge.core.errors import InputError, SettingError, ShapeError
from samforge.runtime.tracking import (
    META,
    TRANSFORMERS,
    Memory,
    MemoryBank,
    MemoryRules,
    attended_frames,
    banks_from_file,
    effective_score,
    forget,
    gather,
    nearest_conditioning,
    needed_frames,
    remember,
    save_banks,
)

SELECTING = META.memory
BY_TIME = replace(SELECTING, least_score=None)
STRIDED = replace(BY_TIME, stride=3)
SELECTING_STRIDED = replace(SELECTING, stride=2)
KEEPING = replace(SELECTING, keep_first=True)
ALL = (SELECTING, BY_TIME, STRIDED, SELECTING_STRIDED, KEEPING, TRANSFORMERS.memory)


def memory(frame: int, *, conditioning: bool = False, score: float = 1.0) -> Memory:
    return Memory(
        frame=frame,
        pointer=np.array([frame, -frame], np.float32),
        features=np.full((3, 2), frame, np.uint16),
        conditioning=conditioning,
        score=score,
    )


# Which frames


def test_the_nearest_conditioning_frames() -> None:
    assert nearest_conditioning([9, 0, 4], 20, SELECTING) == (0, 4, 9)
    known = [0, 4, 9, 13, 17, 25]
    assert nearest_conditioning(known, 20, SELECTING) == (17, 25, 13, 9)
    assert nearest_conditioning(known, 30, SELECTING) == (25, 17, 13, 9)
    assert nearest_conditioning(known, 9, SELECTING) == (4, 9, 13, 17)
    assert nearest_conditioning(known, 20, KEEPING) == (0, 17, 25, 13)
    # Of equal distances the earlier frame.
    assert nearest_conditioning([0, 10, 19, 21, 30], 20, SELECTING) == (19, 21, 10, 30)
    assert nearest_conditioning([8, 10, 20, 30, 32], 20, SELECTING) == (10, 20, 30, 8)


def test_selection_takes_ranks_however_far_back() -> None:
    # Frames 2 to 5 are good, then the object is lost; frame 30 attends.
    scores = {frame: 0.5 if 2 <= frame <= 5 else 0.0 for frame in range(1, 30)}
    found = attended_frames([0], scores, 30, SELECTING)
    assert found.memories == ((0, 0), (2, 5), (3, 4), (4, 3), (5, 2), (29, 1))
    # Meta leaves the pointer of the oldest one out.
    assert found.pointers == ((0, 30), (29, 1), (5, 2), (4, 3), (3, 4))
    assert found.pointer_span == 15
    by_time = attended_frames([0], scores, 30, BY_TIME)
    assert by_time.memories == ((0, 0), *((frame, 30 - frame) for frame in range(24, 30)))
    assert by_time.pointers == ((0, 30), *((30 - step, step) for step in range(1, 16)))


def test_the_previous_frame_takes_a_rank_without_a_memory() -> None:
    scores = dict.fromkeys(range(1, 16), 1.0)
    found = attended_frames([0, 16], scores, 17, SELECTING)
    assert found.memories == ((0, 0), (16, 0), (11, 6), (12, 5), (13, 4), (14, 3), (15, 2))
    assert found.pointers[:3] == ((0, 17), (16, 1), (15, 2))
    assert attended_frames([0], {}, 1, SELECTING).memories == ((0, 0),)


def test_short_videos_look_less_far() -> None:
    scores = dict.fromkeys(range(1, 5), 1.0)
    found = attended_frames([0], scores, 5, SELECTING, length=4)
    assert [frame for frame, _ in found.memories] == [0, 2, 3, 4]
    assert found.pointer_span == 3
    # A video of one frame divides by 0 in both references.
    assert attended_frames([0], {}, 0, SELECTING, length=1).pointer_span == 1


def test_running_backwards() -> None:
    scores = dict.fromkeys(range(10, 20), 1.0)
    found = attended_frames([20], scores, 9, SELECTING, reverse=True)
    assert found.memories == ((20, 0), *((9 + step, step) for step in range(6, 0, -1)))
    assert found.pointers[0] == (20, 11)
    # A conditioning frame that is still to come gives a memory and no pointer.
    ahead = attended_frames([3, 20], scores, 9, SELECTING, reverse=True)
    assert [frame for frame, code in ahead.memories if code == 0] == [3, 20]
    assert ahead.pointers[0] == (20, 11)


def test_strides() -> None:
    scores = dict.fromkeys(range(1, 40), 1.0)
    found = attended_frames([0], scores, 40, STRIDED)
    assert [frame for frame, _ in found.memories] == [0, 24, 27, 30, 33, 36, 39]
    found = attended_frames([0], scores, 40, SELECTING_STRIDED)
    assert [frame for frame, _ in found.memories] == [0, 29, 31, 33, 35, 37, 39]


def test_nothing_to_attend_to() -> None:
    with pytest.raises(SettingError, match="Frame 5 has no conditioning frame"):
        attended_frames([], {4: 1.0}, 5, SELECTING)
    with pytest.raises(SettingError, match="Prompt the object first"):
        gather(MemoryBank(), 5)


def test_scores_of_absent_objects_are_zero() -> None:
    scores = np.array([[2.0], [-1.0]], np.float32)
    there = 2 / (1 + np.exp(-2)) - 1
    mine = effective_score(np.array([0.5, 0.9]), scores, per_object=True)
    assert mine == pytest.approx([0.5 * there, 0])
    assert effective_score(np.array([0.5, 0.9]), scores) == pytest.approx([0.7 * there / 2] * 2)
    assert effective_score(np.array([0.5]), scores[:1]) == pytest.approx([0.5 * there])
    assert effective_score(np.zeros(0), np.zeros(0)).tolist() == []


# A bounded bank


@pytest.mark.parametrize(
    ("rules", "frames"),
    [
        *((SELECTING, 10_000), (BY_TIME, 10_000)),
        *((STRIDED, 1000), (SELECTING_STRIDED, 1000), (KEEPING, 1000)),
    ],
)
def test_ten_thousand_frames_fit(rules: MemoryRules, frames: int) -> None:
    rng = np.random.default_rng(5)
    bank = remember(MemoryBank(), memory(0, conditioning=True), rules)
    features, pointers = [], []
    for frame, score in enumerate(rng.choice([0.0, 0.5], frames), start=1):
        bank = remember(
            bank, memory(frame, conditioning=frame % 16 == 0, score=float(score)), rules
        )
        features.append(sum(known.features is not None for known in bank))
        pointers.append(len(bank))
    most = rules.conditioning + rules.keep_first + 1
    assert max(features) <= most + (rules.memories - 1) * rules.stride
    # One more conditioning frame, for the order of the others.
    assert max(pointers) <= most + 1 + (rules.pointers - 1) * rules.stride
    # It does not creep up.
    assert max(pointers[frames // 2 :]) <= max(pointers[: frames // 2])
    assert bank.size_bytes <= max(features) * 12 + max(pointers) * 8


def test_transformers_pointers_grow() -> None:
    bank = MemoryBank()
    for frame in range(800):
        bank = remember(bank, memory(frame, conditioning=frame % 16 == 0), TRANSFORMERS.memory)
    assert len(bank) == 50 + 15
    assert sum(known.features is not None for known in bank) <= 10


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(ALL), st.booleans())
def test_forgetting_changes_nothing(seed: int, rules: MemoryRules, reverse: bool) -> None:
    """What was left out is never attended to, whatever comes later."""
    rng = np.random.default_rng(seed)
    everything, bank, frame = MemoryBank(), MemoryBank(), 500
    for age in range(50):
        if age:
            whole = gather(everything, frame, rules, reverse=reverse)
            part = gather(bank, frame, rules, reverse=reverse)
            for name in ("features", "memory_codes", "pointers", "pointer_times"):
                assert np.array_equal(getattr(whole, name), getattr(part, name)), (frame, name)
        come = memory(
            frame,
            conditioning=age == 0 or rng.random() < 0.15,
            score=float(rng.choice([0.0, 0.4])),
        )
        grown = sorted([*everything, come], key=lambda known: known.frame)
        everything = MemoryBank(memories=tuple(grown))
        bank = remember(bank, come, rules, reverse=reverse)
        # Frames may be left out.
        frame += (-1 if reverse else 1) * int(rng.choice([1, 1, 1, 2, 5]))
    assert len(bank) < len(everything)


def test_gathered_arrays() -> None:
    bank = MemoryBank()
    for frame in range(4):
        bank = remember(bank, memory(frame, conditioning=frame == 0))
    found = gather(bank, 4)
    # The very arrays that were kept: they may lie on a device.
    assert [id(one) for one in found.features] == [id(known.features) for known in bank]
    assert [int(one[0, 0]) for one in found.features] == [0, 1, 2, 3]
    assert found.memory_codes.tolist() == [0, 3, 2, 1]
    assert found.pointers[:, 0].tolist() == [0, 3, 2]
    assert found.pointer_times == pytest.approx(np.array([4, 1, 2]) / 15)
    assert found.pointer_times.dtype == np.float32


def test_a_frame_is_remembered_once() -> None:
    bank = remember(remember(MemoryBank(), memory(0, conditioning=True)), memory(1))
    corrected = remember(bank, memory(1, conditioning=True))
    assert (corrected.conditioning, corrected.ordinary) == ((0, 1), {})
    with pytest.raises(SettingError, match="one memory a frame, in order"):
        MemoryBank(memories=(memory(1), memory(1)))
    with pytest.raises(ShapeError, match=r"wants a pointer \(D,\), got \(1, 2\)"):
        Memory(frame=0, pointer=np.zeros((1, 2)), features=None)


def test_prompts_stay_and_those_ahead_too() -> None:
    bank = remember(MemoryBank(), replace(memory(0, conditioning=True), pinned=True))
    bank = remember(bank, memory(90, conditioning=True))
    for frame in range(1, 90):
        bank = remember(bank, memory(frame, conditioning=frame % 8 == 0))
        assert {0, 90} <= set(bank.conditioning)
    assert 8 not in bank.conditioning
    # 0 is pinned: it is there for a pass backwards.
    assert bank.memories[0].features is not None
    assert 0 not in needed_frames(bank.conditioning, bank.ordinary, 89, SELECTING).memories


def test_a_pass_that_turns_back_says_what_is_missing() -> None:
    bank = MemoryBank()
    for frame in range(30):
        bank = remember(bank, memory(frame, conditioning=frame == 0))
    assert bank.memories[5].features is None
    with pytest.raises(SettingError, match=r"features of frame \d+ were forgotten"):
        gather(bank, bank.memories[1].frame - 1, BY_TIME, reverse=True)
    assert forget(bank, 29).conditioning == (0,)


# As a file


def test_banks_come_back_from_a_file(tmp_path: Path) -> None:
    banks = {7: MemoryBank(), 3: MemoryBank()}
    for frame in range(30):
        pinned = replace(memory(frame, conditioning=frame % 9 == 0, score=0.3), pinned=frame == 0)
        banks[3] = remember(banks[3], pinned)
    path = tmp_path / "banks.npz"
    save_banks(path, banks)
    again = banks_from_file(path)
    assert list(again) == [7, 3]
    assert len(again[7]) == 0
    assert len(again[3]) == len(banks[3])
    for one, other in zip(again[3], banks[3], strict=True):
        for name in ("frame", "conditioning", "score", "pinned"):
            assert getattr(one, name) == getattr(other, name)
        assert np.array_equal(one.pointer, other.pointer)
        assert (one.features is None) == (other.features is None)
        if one.features is not None and other.features is not None:
            assert one.features.dtype == other.features.dtype
            assert np.array_equal(one.features, other.features)
    assert np.array_equal(gather(again[3], 30).features, gather(banks[3], 30).features)


def test_files_that_are_no_banks(tmp_path: Path) -> None:
    path = tmp_path / "banks.npz"
    with pytest.raises(InputError, match="cannot be read as memory banks"):
        banks_from_file(path)
    path.write_bytes(b"PK")
    with pytest.raises(InputError, match="Give a file that save_banks wrote"):
        banks_from_file(path)
    np.savez(path, version=np.array(2), ids=np.array([], np.int64))
    with pytest.raises(InputError, match="it is of version 2, and this samforge reads 1"):
        banks_from_file(path)
    np.savez(path, version=np.array(1), ids=np.array([4]))
    with pytest.raises(InputError, match="4/frames"):
        banks_from_file(path)
    buffer = io.BytesIO()
    np.savez(buffer, version=np.array([{}], dtype=object))
    path.write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match="allow_pickle"):
        banks_from_file(path)
