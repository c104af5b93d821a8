"""Sessions beside transformers' own video model: same weights, same frames, its faults mended.

``benchmarks/transformers_video.py`` measures more of it, and what each fault does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from benchmarks._stock_video import (
    FAULTS,
    FLOOR,
    GROUPS,
    rules_with,
    samforge_frames,
    stock_frames,
    stock_video,
    transformers_segmenter,
)

from samforge.measure.tracks import TrackComparison, compare_tracks
from samforge.models.tiny.crossing import draw_crossing

pytestmark = pytest.mark.slow
FRAMES = 18
PHRASES = ("object",)


@pytest.fixture(scope="module")
def clip() -> list[Any]:
    """Objects are born on the way, hide each other, and are conditioned again and again."""
    return [scene.image for scene in draw_crossing(1, frames=FRAMES)]


@pytest.fixture(scope="module")
def ours(one_thread: None, clip: list[Any]) -> list[Any]:
    """What a session follows, with the mended rules."""
    _, changes = GROUPS["lively"]
    return samforge_frames(transformers_segmenter(), clip, PHRASES, rules_with(set(), **changes))


def compared(clip: Sequence[Any], ours: Sequence[Any], faults: set[int]) -> TrackComparison:
    settings, _ = GROUPS["lively"]
    return compare_tracks(list(stock_frames(stock_video(faults, **settings), clip, PHRASES)), ours)


def test_the_mended_model_is_followed(clip: list[Any], ours: list[Any]) -> None:
    one = compared(clip, ours, set())
    assert one.tracks >= 4
    assert (one.lost, one.extra) == ((), ())
    assert one.worst >= FLOOR
    assert one.born_alike == one.ended_alike == one.tracks


def test_as_it_is_it_follows_otherwise(clip: list[Any], ours: list[Any]) -> None:
    """The comparison can fail: with its faults the same objects look otherwise."""
    one = compared(clip, ours, set(FAULTS))
    assert one.worst < 0.95
