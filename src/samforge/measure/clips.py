"""How well a segmenter follows objects of labelled clips: by clicks, by text, without memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from samforge.core.capabilities import MEMORY_ATTENTION
from samforge.measure.clicking import first_click, iou_after_clicks
from samforge.measure.identities import (
    Identities,
    identities_from_overlaps,
    summed_identities,
)
from samforge.measure.overlaps import Frame, frame_overlaps
from samforge.measure.regions import ObjectScore, object_scores
from samforge.runtime.tracking import ObjectPrompt, PromptAt, track_video
from samforge.runtime.tracking.around import AroundParts

if TYPE_CHECKING:
    from samforge.core.labelled import LabelledClip
    from samforge.runtime import EncodedImage, Segmenter
    from samforge.runtime.tracking import TrackerParts

CLICKS = 3
"""On each object of a first frame."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Followed:
    """How the objects of one or more clips were followed in one way."""

    objects: tuple[ObjectScore, ...]
    """Every true object."""
    identities: Identities
    """Summed over the clips."""

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain JSON values; means are over the objects."""
        present = [one.j_present for one in self.objects if one.j_present is not None]
        return {
            "objects": len(self.objects),
            "j_and_f": _mean([one.j_and_f for one in self.objects]),
            "j": _mean([one.j for one in self.objects]),
            "f": _mean([one.f for one in self.objects]),
            "j_where_present": _mean(present),
            "idf1": round(self.identities.idf1, 5),
            "switches": self.identities.switches,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipFigures:
    """What was measured of one clip, or of several."""

    clicked: Followed | None
    """Objects that a click on the first frame showed, on the frames between the first and the last;
    None where there is none."""
    emptied: Followed | None
    """The same with memories of zeros: the control."""
    named: Followed | None
    """Objects that the phrase names, on all frames; None where it was not asked."""
    click_iou: tuple[tuple[float, ...], ...]
    """IoU on the first frame after every click, an object each, of the masks that are given out."""
    click_iou_raw: tuple[tuple[float, ...], ...]
    """The same where no hole is filled."""

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain JSON values."""
        ways = {"clicks": self.clicked, "clicks, no memory": self.emptied, "text": self.named}
        figures: dict[str, Any] = {
            name: one.to_dict() for name, one in ways.items() if one is not None
        }
        figures["iou_after_clicks"] = _means(self.click_iou)
        figures["iou_after_clicks, holes kept"] = _means(self.click_iou_raw)
        return figures


def measure_clip(
    segmenter: Segmenter, clip: LabelledClip, *, text: bool = True, control: bool = True
) -> ClipFigures:
    """Follow the objects of one clip; every frame is encoded once.

    Args:
        segmenter: With a tracker.
        clip: Its frames and the truth.
        text: Whether to look for its phrase as well.
        control: Whether to follow what was clicked once more, without memory.

    Raises:
        SettingError: The segmenter has no tracker.
        ShapeError: The clip has less than three frames.
    """
    parts = SharedFrames(segmenter.tracker_parts())
    true = {number: clip.masks[0][number] for number in clip.shown}
    emptied = EmptiedMemory(parts) if control else None
    first = parts.encode(clip.images_rgb[0])
    given, raw = (
        iou_after_clicks(segmenter, first, true, CLICKS, hole_area=one) for one in (None, 0)
    )
    return ClipFigures(
        clicked=followed_by_clicks(parts, clip),
        emptied=None if emptied is None else followed_by_clicks(emptied, clip),
        named=followed_by_text(parts, clip) if text else None,
        click_iou=tuple(given.values()),
        click_iou_raw=tuple(raw.values()),
    )


def followed_by_clicks(parts: TrackerParts, clip: LabelledClip) -> Followed | None:
    """Click once on every shown object of the first frame, and follow all of them.

    Returns:
        Their scores, as the semi-supervised task counts them; None where nothing is shown.
    """
    if not clip.shown:
        return None
    prompts = [
        PromptAt(frame=0, prompt=ObjectPrompt(points=[first_click(clip.masks[0][number])]))
        for number in clip.shown
    ]
    found = [frame.detections for frame in track_video(parts, clip.images_rgb, prompts=prompts)]
    true = [
        {number: mask for number, mask in frame.items() if number in clip.shown}
        for frame in clip.masks
    ]
    # The session numbers its objects from 0, in the order of the prompts.
    pairs = {number: place for place, number in enumerate(clip.shown)}
    return followed_from_frames(true, found, pairs=pairs, skip_ends=True)


def followed_by_text(parts: TrackerParts, clip: LabelledClip) -> Followed:
    """Look for the clip's phrase and follow what it names.

    Returns:
        Scores of all objects, as the unsupervised task counts them.
    """
    found = [frame.detections for frame in track_video(parts, clip.images_rgb, text=clip.phrase)]
    return followed_from_frames(clip.masks, found)


def summed_clips(clips: Iterable[ClipFigures]) -> ClipFigures:
    """Figures of several clips as one."""
    counted = tuple(clips)
    return ClipFigures(
        clicked=summed_ways([one.clicked for one in counted]),
        emptied=summed_ways([one.emptied for one in counted]),
        named=summed_ways([one.named for one in counted]),
        click_iou=tuple(own for one in counted for own in one.click_iou),
        click_iou_raw=tuple(own for one in counted for own in one.click_iou_raw),
    )


class SharedFrames(AroundParts):
    """Parts that encode each frame of a clip once, for several sessions.

    Images are told apart by where they lie in memory: keep them as long as this.
    """

    def __init__(self, parts: TrackerParts) -> None:
        super().__init__(parts)
        self._encoded: dict[int, EncodedImage] = {}

    def encode(self, image: Any) -> EncodedImage:
        """Run the vision part on a frame that was not seen before."""
        if id(image) not in self._encoded:
            self._encoded[id(image)] = self._parts.encode(image)
        return self._encoded[id(image)]


class EmptiedMemory(AroundParts):
    """Parts to which memories and pointers are zeros: what a tracker does that remembers nothing.

    Without this control a detector, or a mask that stays where it was, may pass for memory.
    """

    def run(self, part: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run a part."""
        if part == MEMORY_ATTENTION:
            inputs = {**inputs, **{name: inputs[name] * 0 for name in ("memory", "pointers")}}
        return self._parts.run(part, inputs)


def followed_from_frames(
    true: Sequence[Frame],
    found: Sequence[Frame],
    *,
    pairs: Mapping[int, int] | None = None,
    skip_ends: bool = False,
) -> Followed:
    """Score one run of a clip; the arguments are those of ``object_scores``."""
    counted = frame_overlaps(true, found)
    return Followed(
        objects=object_scores(true, found, pairs=pairs, skip_ends=skip_ends),
        identities=identities_from_overlaps(counted[1:-1] if skip_ends else counted),
    )


def summed_ways(ways: Sequence[Followed | None]) -> Followed | None:
    """Scores of several runs as one; None where there is none."""
    there = [one for one in ways if one is not None]
    if not there:
        return None
    return Followed(
        objects=tuple(score for one in there for score in one.objects),
        identities=summed_identities(one.identities for one in there),
    )


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 5) if values else None


def _means(ious: Sequence[Sequence[float]]) -> list[float]:
    """Of all objects, after every click."""
    return [round(float(value), 5) for value in np.mean(ious, axis=0)] if ious else []
