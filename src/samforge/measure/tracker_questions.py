"""What a tracker is asked to prove it: clicks on pictures, objects through clips."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from samforge.core.errors import FidelityError
from samforge.measure.gates import limit_of, within
from samforge.measure.tracker_fidelity import (
    ClickFidelity,
    TrackFidelity,
    compare_clicks,
    compare_clips,
)
from samforge.runtime.tracking import ObjectPrompt, PromptAt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from samforge.core.detections import Detections
    from samforge.core.images import RgbImage
    from samforge.core.recipe import Gates
    from samforge.runtime import Segmenter

PAN = 0.75
"""Side of the window that moves over a picture, as a share of the picture's."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Questions:
    """What both sides are asked; the reference says where objects are."""

    pictures: tuple[RgbImage, ...]
    """Pictures that are clicked on."""
    clicks: tuple[tuple[ObjectPrompt, ...], ...]
    """Prompts of each."""
    clips: tuple[tuple[RgbImage, ...], ...]
    """Frames of each clip."""
    shown: tuple[tuple[PromptAt, ...], ...]
    """Objects that are shown in each."""
    phrases: tuple[tuple[str, ...], ...]
    """Phrases that are looked for in each."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Said:
    """What one side answers."""

    clicked: Sequence[Detections]
    """Picture by picture."""
    followed: Sequence[Sequence[Detections]]
    """Clip by clip, frame by frame: first by phrases, then by prompts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackerFidelity:
    """How close one side's answers are to the other's."""

    clicks: ClickFidelity
    """Masks of the same clicks."""
    tracks: TrackFidelity | None
    """Tracks of the same clips; None where nothing was followed."""

    @property
    def measured(self) -> dict[str, float]:
        """The figure of every gate."""
        figures = {"click_iou": self.clicks.click_iou}
        return figures if self.tracks is None else figures | {"track_iou": self.tracks.track_iou}

    def in_words(self) -> str:
        """What it rests on."""
        words = [f"{self.clicks.clicks} clicks"]
        if self.tracks is not None:
            words.append(f"{self.tracks.tracks} tracks, {self.tracks.measured_tracks} found")
        return ", ".join(words)


def ask_tracker(segmenter: Segmenter, questions: Questions) -> Said:
    """Put all questions to a segmenter.

    Raises:
        FidelityError: The model's output holds NaN.
    """
    clicked = [
        segmenter.predict_objects(picture, prompts)
        for picture, prompts in zip(questions.pictures, questions.clicks, strict=True)
    ]
    followed = []
    for clip, phrases, shown in zip(
        questions.clips, questions.phrases, questions.shown, strict=True
    ):
        by_text = segmenter.track_video(clip, text=phrases)
        followed.append([frame.detections for frame in by_text])
        by_click = segmenter.track_video(clip, prompts=shown)
        followed.append([frame.detections for frame in by_click])
    return Said(clicked=clicked, followed=followed)


def compare_answers(wanted: Said, found: Said) -> TrackerFidelity:
    """Hold one side's answers against the other's.

    Raises:
        ShapeError: They are not answers to the same questions.
    """
    return TrackerFidelity(
        clicks=compare_clicks(wanted.clicked, found.clicked),
        tracks=compare_clips(wanted.followed, found.followed) if wanted.followed else None,
    )


def check_tracker(fidelity: TrackerFidelity, precision: str, gates: Gates) -> Mapping[str, float]:
    """Hold the gates on clicks and tracks.

    Returns:
        The limit of each.

    Raises:
        FidelityError: A figure is beyond it.
    """
    limits = {}
    for gate, value in fidelity.measured.items():
        limits[gate] = limit_of(gate, precision, gates)
        if not within(gate, value, limits[gate]):
            raise FidelityError(
                f"{precision} against fp32: {gate} is {value:.4f}, the gate is {limits[gate]:g} "
                f"({fidelity.in_words()})."
            )
    return limits


def panned(rgb: RgbImage, frames: int) -> tuple[RgbImage, ...]:
    """A window that moves over a picture from one corner to the other: a clip of any picture."""
    height, width = rgb.shape[:2]
    down, across = max(1, round(height * PAN)), max(1, round(width * PAN))
    places = np.linspace(0, 1, frames)
    return tuple(
        np.ascontiguousarray(rgb[top : top + down, left : left + across])
        for top, left in zip(
            np.rint(places * (height - down)).astype(int).tolist(),
            np.rint(places * (width - across)).astype(int).tolist(),
            strict=True,
        )
    )
