"""The arrays of ``tracking.npz``: made-up detections and tracks, and what Meta's code decided."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from tests.golden.meta.arrays import Array, Arrays

from samforge.runtime.tracking import Detected, Tracked

FILE = Path(__file__).with_name("tracking.npz")


@lru_cache
def tracking_arrays() -> Arrays:
    """Read all arrays by name."""
    with np.load(FILE) as file:
        return {name: file[name] for name in file.files}


def unpacked(masks: Array) -> Array:
    """Booleans from ``np.packbits`` along the last axis."""
    return np.unpackbits(masks, axis=-1).astype(np.bool_)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StoryFrame:
    """One of 40 frames: what came, and what Meta's planning step said."""

    found: Array
    """Masks of the detections, booleans."""
    detected: Detected
    """Before NMS."""
    filled: Array
    """The tracked masks with holes filled, booleans."""
    tracked: Tracked
    """With holes filled."""
    unfilled: Array
    """The tracked masks before that, booleans."""
    said: dict[str, Any]
    """Decisions under Meta's names; detections are numbered among the kept ones."""


def story() -> Iterator[StoryFrame]:
    """The frames in order."""
    arrays = tracking_arrays()
    for number, said in enumerate(json.loads(arrays["story/decisions"].tobytes())):
        one = {
            name.rsplit("/", 1)[1]: array
            for name, array in arrays.items()
            if name.startswith(f"story/{number}/")
        }
        scores = one["detection_scores"]
        found, filled = unpacked(one["detection_masks"]), unpacked(one["track_masks_filled"])
        yield StoryFrame(
            found=found,
            detected=Detected.from_masks(
                masks=found,
                scores=scores,
                phrases=np.zeros(len(scores), np.int64),
            ),
            filled=filled,
            tracked=Tracked.from_masks(masks=filled, scores=one["track_scores"]),
            unfilled=unpacked(one["track_masks"]),
            said=said,
        )
