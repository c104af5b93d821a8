"""Clicks and tracks of a bundle against those of fp32: the proof of the tracker's parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from samforge.backends import backend_from_name
from samforge.core.capabilities import TRACK
from samforge.core.detections import Detections
from samforge.core.errors import FidelityError
from samforge.core.files import atomic_write_json
from samforge.core.images import RgbImage
from samforge.core.labelled import LabelledImage
from samforge.measure import limit_of
from samforge.measure.clicking import first_click
from samforge.measure.gates import within
from samforge.measure.tracker_fidelity import compare_clicks, compare_clips
from samforge.models import tiny
from samforge.runtime import ObjectPrompt, Segmenter
from samforge.runtime.tracking import PromptAt
from samforge.steps.calibrate import float_sessions, segmenter_of
from samforge.steps.context import SMALL_IMAGE, BuildContext, StepOutput
from samforge.steps.images import verification_images
from samforge.steps.phrases import knows_scenes
from samforge.steps.rounds import Sessions, built_sessions, takes_weak_evidence

REPORT = "report/tracking.json"
"""The figures; written before the gates are asked."""
PICTURES, PICTURES_OF_LARGE = 8, 2
"""Pictures that are clicked on."""
MOST_CLICKED = 4
"""Objects of a picture that are clicked on."""
CLIPS, CLIPS_OF_LARGE = 2, 1
"""Clips through which objects are followed."""
FRAMES, FRAMES_OF_LARGE = 12, 5
"""Frames of a clip: more than an object remembers, where that takes no hours."""
MOST_FOLLOWED = 3
"""Objects that are shown on the first frame of a clip."""
PAN = 0.75
"""Side of the window that moves over a picture, where no clips can be drawn, as a share."""
RANDOM = "Weights are random: what is clicked on and followed has no meaning and was not compared."
LEAST = {"clicks": 8, "tracks": 4}
"""Least evidence: a figure of less says nothing."""
NOT_RUN = (
    "Clicks and tracks were not compared: there is no device here that can run the bundle, and "
    "samforge verify asks about phrases and boxes alone."
)


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

    clicked: list[Detections]
    """Picture by picture."""
    followed: list[list[Detections]]
    """Clip by clip, frame by frame: first by phrases, then by prompts."""


def follow_bundle(context: BuildContext) -> StepOutput:
    """Click on the same places and follow objects through the same clips, on both sides.

    Raises:
        FidelityError: Masks or tracks differ by more than a gate allows; the figures are kept.
    """
    if backend_from_name(context.runtime).version() is None:
        return StepOutput(outputs=(), figures=(), notes=(NOT_RUN,))
    if context.recipe.random_weights:
        return StepOutput(outputs=(), figures=(), notes=(RANDOM,))
    questions, wanted = _asked_of_reference(context)
    found = _answered(context, partial(built_sessions, context), questions)
    clicks = compare_clicks(wanted.clicked, found.clicked)
    figures: dict[str, Any] = {"clicks": asdict(clicks)}
    measured = {"click_iou": clicks.click_iou}
    if questions.clips:
        tracks = compare_clips(wanted.followed, found.followed)
        figures["tracks"] = asdict(tracks)
        measured["track_iou"] = tracks.track_iou
    atomic_write_json(context.path(REPORT), figures)
    notes = _weak(context, figures)
    gates = {}
    for gate, value in measured.items():
        limit = limit_of(gate, context.recipe.precision, context.recipe.gates)
        if not within(gate, value, limit):
            raise FidelityError(
                f"{context.recipe.precision} against fp32: {gate} is {value:.4f}, the gate is "
                f"{limit:g} ({_in_words(figures)}). Nothing was published."
            )
        gates[gate] = limit
    return StepOutput(outputs=(REPORT,), figures=tuple(figures.values()), gates=gates, notes=notes)


def _weak(context: BuildContext, figures: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """A note where there is little evidence and the recipe takes it.

    Raises:
        FidelityError: There is, and it does not.
    """
    lacking = [
        f"{figures[name][name]} {name} of {least}"
        for name, least in LEAST.items()
        if name in figures and figures[name][name] < least
    ]
    if not lacking:
        return ()
    told = f"Weak evidence for clicks and tracks: {', '.join(lacking)} at least."
    if takes_weak_evidence(context):
        return (told,)
    raise FidelityError(
        f"{told} Nothing was published. Give more pictures (--calibration, --samples) with what "
        "the phrases name; --weak-evidence publishes all the same and says so in the bundle."
    )


def _in_words(figures: Mapping[str, Mapping[str, Any]]) -> str:
    words = [f"{figures['clicks']['clicks']} clicks"]
    if "tracks" in figures:
        tracks = figures["tracks"]
        words.append(f"{tracks['tracks']} tracks, {tracks['measured_tracks']} of the bundle")
    return ", ".join(words)


def _asked_of_reference(context: BuildContext) -> tuple[Questions, Said]:
    """Let fp32 find objects, ask about them, and answer."""
    sessions = float_sessions(context)
    segmenter = segmenter_of(context, sessions)
    large = context.model.image.size > SMALL_IMAGE
    count = PICTURES_OF_LARGE if large else PICTURES
    pictures, clicks = [], []
    for image in islice(verification_images(context), count):
        pictures.append(image.image_rgb)
        clicks.append(_clicks_on(segmenter, image.image_rgb, _phrases_of(image), MOST_CLICKED))
    clips: list[tuple[RgbImage, ...]] = []
    phrases_of, shown = [], []
    for clip, named in _clips(context) if TRACK.among(context.parts) else ():
        clips.append(clip)
        phrases_of.append(named)
        prompts = _clicks_on(segmenter, clip[0], named, MOST_FOLLOWED)
        shown.append(tuple(PromptAt(frame=0, prompt=one) for one in prompts))
    questions = Questions(
        pictures=tuple(pictures),
        clicks=tuple(clicks),
        clips=tuple(clips),
        shown=tuple(shown),
        phrases=tuple(phrases_of),
    )
    said = _said(segmenter, questions)
    segmenter.close()
    return questions, said


def _answered(context: BuildContext, load: Sessions, questions: Questions) -> Said:
    segmenter = segmenter_of(context, load())
    said = _said(segmenter, questions)
    segmenter.close()
    return said


def _said(segmenter: Segmenter, questions: Questions) -> Said:
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


def _phrases_of(image: LabelledImage) -> list[str]:
    return [one.text for one in image.questions if one.text and one.boxes_xyxy is None]


def _clicks_on(
    segmenter: Segmenter, rgb: RgbImage, phrases: Sequence[str], most: int
) -> tuple[ObjectPrompt, ...]:
    """A click on each of the best objects that phrases find, or on the picture's middle."""
    height, width = rgb.shape[:2]
    places = [(width / 2, height / 2)]
    if phrases:
        found = segmenter.predict(rgb, text=list(phrases), max_detections=most)
        places = [first_click(mask) for mask in found.masks if mask.any()] or places
    return tuple(ObjectPrompt(points=[place]) for place in places)


def _clips(context: BuildContext) -> Iterator[tuple[tuple[RgbImage, ...], tuple[str, ...]]]:
    """Frames, and phrases that name what is in them."""
    large = context.model.image.size > SMALL_IMAGE
    count = CLIPS_OF_LARGE if large else CLIPS
    frames = FRAMES_OF_LARGE if large else FRAMES
    if context.recipe.calibration.source is None and knows_scenes(context):
        for seed in range(count):
            scenes = list(tiny.draw_crossing(seed, frames=frames, split="demo"))
            first = scenes[0]
            pairs = zip(first.colours, first.shapes, strict=True)
            named = dict.fromkeys(f"{colour} {shape}" for colour, shape in pairs)
            yield tuple(scene.image for scene in scenes), tuple(named)[:MOST_FOLLOWED]
        return
    for image in islice(verification_images(context), count):
        phrases = tuple(dict.fromkeys(_phrases_of(image)))
        yield panned(image.image_rgb, frames), phrases[:MOST_FOLLOWED]


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
