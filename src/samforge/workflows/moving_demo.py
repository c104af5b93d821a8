"""A drawn clip and what the tiny model finds in it: the moving part of ``samforge demo``."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

from samforge.media import VideoWriter
from samforge.models import tiny
from samforge.runtime import Segmenter, Thresholds
from samforge.workflows.video import VideoPlan, VideoResult, segment_video_file

FRAMES = 20
"""Frames of the clip: two seconds."""
_RATE, _PX, _CLIP = 10, 360, 0


def show_clip(
    segmenter: Segmenter, out: Path, *, title: str, done: Callable[[], None]
) -> VideoResult:
    """Draw a clip of moving shapes, and write it with what one colour and one shape find.

    Args:
        segmenter: Of the tiny model.
        out: Folder for ``clip.mp4`` and ``clip.overlay.mp4``.
        title: First words of the readout: ``onnxruntime fp32``.
        done: Called after each frame.

    Raises:
        MissingExtra: PyAV is not installed.
        OutputError: A file cannot be written.
    """
    scenes = list(tiny.draw_clip(_CLIP, frames=FRAMES, size=_PX, frame_rate=_RATE))
    clip = out / "clip.mp4"
    with VideoWriter(clip, (_PX, _PX), frame_rate=Fraction(_RATE)) as writer:
        for number, scene in enumerate(scenes):
            writer.write(scene.image, Fraction(number, _RATE))
    first = scenes[0]
    plan = VideoPlan(
        video=clip,
        out=out / "clip.overlay.mp4",
        # The fourth shape is of another colour than the first three.
        text=(f"{first.colours[0]} object", f"{first.colours[3]} {first.shapes[3]}"),
        thresholds=Thresholds(),
        title=title,
    )
    return segment_video_file(segmenter, plan, done=done)
