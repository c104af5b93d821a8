"""Asks a bundle about labelled videos, and counts: phrases and clicks, right and like another."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from samforge.core.masks import Masks
from samforge.measure.cgf1 import PairOutcome, outcome_from_iou
from samforge.measure.clicking import first_click
from samforge.measure.clips import Followed, followed_from_frames, summed_ways
from samforge.measure.decisions import DecisionAgreement, compare_decisions
from samforge.measure.overlaps import FrameMasks, Ids, frame_overlaps
from samforge.measure.tracks import TrackComparison, compare_tracks, temporal_iou
from samforge.runtime.tracking import ObjectPrompt, PromptAt, VideoSession
from samforge.runtime.tracking.around import AroundParts
from samforge.runtime.tracking.video import stepped

if TYPE_CHECKING:
    from samforge.core.detections import Detections
    from samforge.core.labelled import LabelledVideo
    from samforge.runtime import EncodedImage
    from samforge.runtime.tracking import TrackerParts, VideoFrame

LEAST_FRAMES = 3
"""Of a video that is clicked on: its first and its last frame are not judged."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class VideoAnswer:
    """What was followed through one video."""

    by_text: tuple[tuple[VideoFrame, ...], ...]
    """T frames for each question."""
    by_click: tuple[VideoFrame, ...] | None
    """T frames; None where no object was shown."""
    seconds: float
    """What all of it took, reading the frames included."""

    def compact(self) -> VideoAnswer:
        """The same with masks deflated, to be kept."""
        kept = tuple(tuple(map(_compact, run)) for run in self.by_text)
        clicked = None if self.by_click is None else tuple(map(_compact, self.by_click))
        return replace(self, by_text=kept, by_click=clicked)


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoCount:
    """What was counted of one video."""

    frames: int
    """T."""
    seconds: float
    """What it took."""
    text: Followed | None
    """Objects that phrases name, on all frames; None without a question."""
    clicks: Followed | None
    """Objects that clicks showed, on the frames between the first and the last."""
    outcomes: tuple[PairOutcome, ...]
    """For cgF1, one a question."""
    comparisons: tuple[TrackComparison, ...] = ()
    """With the reference's tracks, phrase by phrase and then by clicks."""
    decisions: tuple[Mapping[str, DecisionAgreement], ...] = ()
    """Likewise."""


class NewestFrame(AroundParts):
    """Parts that encode a frame once for several sessions, and forget it with the next."""

    def __init__(self, parts: TrackerParts) -> None:
        super().__init__(parts)
        self._image: Any = None
        self._encoded: EncodedImage | None = None

    def encode(self, image: Any) -> EncodedImage:
        """Run the vision part, unless on the very frame before."""
        if self._encoded is None or image is not self._image:
            self._image, self._encoded = image, self._parts.encode(image)
        return self._encoded


def ask_video(
    parts: TrackerParts, video: LabelledVideo, done: Callable[[], None] | None = None
) -> VideoAnswer:
    """Put every question of a video, each to a session of its own: phrases do not meet.

    All sessions go through the video together, so that a frame is read and encoded once and no
    more than one is kept.

    Args:
        parts: Of a bundle with its tracker.
        video: What is asked.
        done: Called after each frame.

    Raises:
        ImageError: A frame cannot be read.
        FidelityError: The model's output holds NaN.
    """
    began = time.perf_counter()
    shared = NewestFrame(parts)
    sessions = [VideoSession(shared, text=one.text) for one in video.questions]
    shown = _prompts(video)
    if shown:
        sessions.append(VideoSession(shared))
    runs: list[list[VideoFrame]] = [[] for _ in sessions]
    for number, image in enumerate(video.frames()):
        for place, session in enumerate(sessions):
            clicked = place == len(video.questions)
            runs[place] += stepped(session, number, image, {0: shown} if clicked else {})
        if done is not None:
            done()
    for place, session in enumerate(sessions):
        runs[place] += session.finish()
    return VideoAnswer(
        by_text=tuple(map(tuple, runs[: len(video.questions)])),
        by_click=tuple(runs[-1]) if shown else None,
        seconds=time.perf_counter() - began,
    )


def count_video(
    video: LabelledVideo, answer: VideoAnswer, reference: VideoAnswer | None
) -> VideoCount:
    """Hold an answer against the labels and, where there is one, against a reference's answer."""
    texts: list[Followed | None] = []
    outcomes = []
    for question, run in zip(video.questions, answer.by_text, strict=True):
        found = _detections(run)
        texts.append(followed_from_frames(question.tracks, found))
        iou = temporal_iou(frame_overlaps(question.tracks, found)).iou
        outcomes.append(outcome_from_iou(iou.T))
    comparisons, decisions = [], []
    for wanted, run in _runs_of_both(reference, answer):
        one = compare_tracks(_detections(wanted), _detections(run))
        comparisons.append(one)
        decisions.append(compare_decisions(wanted, run, one.pairs))
    return VideoCount(
        frames=video.length,
        seconds=answer.seconds,
        text=summed_ways(texts),
        clicks=_clicked(video, answer),
        outcomes=tuple(outcomes),
        comparisons=tuple(comparisons),
        decisions=tuple(decisions),
    )


def _prompts(video: LabelledVideo) -> tuple[PromptAt, ...]:
    """A click on every object that is shown; none where too few frames are left to judge."""
    if video.length < LEAST_FRAMES or not video.shown:
        return ()
    first, masks = _truth(video, 0)
    rows = {number: row for row, number in enumerate(first.tolist())}
    return tuple(
        PromptAt(frame=0, prompt=ObjectPrompt(points=[first_click(masks[rows[number]])]))
        for number in video.shown
    )


def _clicked(video: LabelledVideo, answer: VideoAnswer) -> Followed | None:
    if answer.by_click is None:
        return None
    frames = (_truth(video, frame) for frame in range(video.length))
    true = [FrameMasks(ids=ids, masks=masks) for ids, masks in frames]
    # The session numbers its objects from 0, in the order of the prompts.
    pairs = {number: place for place, number in enumerate(video.shown)}
    return followed_from_frames(true, _detections(answer.by_click), pairs=pairs, skip_ends=True)


def _truth(video: LabelledVideo, frame: int) -> tuple[Ids, Masks]:
    """The shown objects on one frame."""
    there = [question.tracks[frame] for question in video.questions]
    ids = np.concatenate([_ids(one) for one in there])
    masks = Masks.concatenate([one.masks for one in there])
    rows = np.flatnonzero(np.isin(ids, video.shown))
    return ids[rows], masks[rows]


def _ids(frame: Detections) -> Ids:
    return np.zeros(0, np.int64) if frame.ids is None else frame.ids


def _runs_of_both(
    reference: VideoAnswer | None, answer: VideoAnswer
) -> list[tuple[tuple[VideoFrame, ...], tuple[VideoFrame, ...]]]:
    if reference is None:
        return []
    runs = list(zip(reference.by_text, answer.by_text, strict=True))
    if reference.by_click is not None and answer.by_click is not None:
        runs.append((reference.by_click, answer.by_click))
    return runs


def _detections(run: Sequence[VideoFrame]) -> list[Detections]:
    return [frame.detections for frame in run]


def _compact(frame: VideoFrame) -> VideoFrame:
    return replace(frame, detections=frame.detections.compact())
