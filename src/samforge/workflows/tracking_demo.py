"""A drawn clip in which shapes hide and return: the tracker's part of ``samforge demo``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from samforge.draw import grid, overlay
from samforge.media import write_png
from samforge.models import tiny
from samforge.runtime import Segmenter

CLIP, FRAMES, SHOWN = 0, 32, 4
"""Number of the clip in the demo split, its frames, and how many go for one in the strip."""
CELL_PX = 300
"""Side of a frame in the strip."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tracking:
    """What was followed."""

    picture: Path
    """The strip of frames."""
    frames: int
    """Frames of the clip."""
    objects: int
    """Objects that were followed."""
    returned: int
    """Those that were hidden for at least one frame and came back under their number."""


def show_track(segmenter: Segmenter, out: Path, *, done: Callable[[], None]) -> Tracking:
    """Follow what phrases name through a clip of crossing shapes, and draw a strip of its frames.

    Args:
        segmenter: Of the tiny model with its tracker.
        out: Folder for ``track.png``.
        done: Called after each frame.

    Raises:
        OutputError: The picture cannot be written.
    """
    scenes = list(tiny.draw_crossing(CLIP, frames=FRAMES, split="demo"))
    named = zip(scenes[0].colours, scenes[0].shapes, strict=True)
    phrases = list(dict.fromkeys(f"{colour} {shape}" for colour, shape in named))
    tiles, titles = [], []
    seen: dict[int, list[int]] = {}
    for frame in segmenter.track_video([scene.image for scene in scenes], text=phrases):
        found = frame.detections
        for number in () if found.ids is None else found.ids.tolist():
            seen.setdefault(number, []).append(frame.index)
        if frame.index % SHOWN == 0:
            tiles.append(overlay(scenes[frame.index].image, found, min_side=CELL_PX, opacity=0.35))
            titles.append(f"frame {frame.index}")
        done()
    strip = grid(tiles, titles, columns=FRAMES // SHOWN // 2, cell=CELL_PX)
    returned = sum(max(own) - min(own) + 1 > len(own) for own in seen.values())
    return Tracking(
        picture=write_png(out / "track.png", strip),
        frames=len(scenes),
        objects=len(seen),
        returned=returned,
    )
