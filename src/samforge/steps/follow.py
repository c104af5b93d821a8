"""Clicks and tracks of a bundle against those of fp32: the proof of the tracker's parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any

from samforge.backends import backend_from_name
from samforge.core.capabilities import TRACK
from samforge.core.errors import FidelityError
from samforge.core.files import atomic_write_json
from samforge.core.images import RgbImage
from samforge.core.labelled import LabelledImage
from samforge.core.manifest import TRACKS_NAME
from samforge.measure.clicking import first_click
from samforge.measure.proof_tracks import ProofTracks, write_proof_tracks
from samforge.measure.tracker_questions import (
    Questions,
    ask_tracker,
    check_tracker,
    compare_answers,
    panned,
)
from samforge.models import tiny
from samforge.runtime import ObjectPrompt, Segmenter
from samforge.runtime.tracking import PromptAt
from samforge.steps.calibrate import float_sessions, segmenter_of
from samforge.steps.context import SMALL_IMAGE, BuildContext, StepOutput
from samforge.steps.images import verification_images
from samforge.steps.phrases import knows_scenes
from samforge.steps.rounds import built_sessions, takes_weak_evidence
from samforge.steps.verify import proof_images

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
PROOF_FRAMES = 4
"""Of the clip that a bundle carries: a window that moves over its first picture."""
RANDOM = "Weights are random: what is clicked on and followed has no meaning and was not compared."
LEAST = {"clicks": 8, "tracks": 4}
"""Least evidence: a figure of less says nothing."""
NOT_RUN = (
    "Clicks and tracks were not compared: there is no device here that can run the bundle. Run "
    "samforge verify where it will be used."
)


def follow_bundle(context: BuildContext) -> StepOutput:
    """Click on the same places and follow objects through the same clips, on both sides.

    Raises:
        FidelityError: Masks or tracks differ by more than a gate allows; the figures are kept.
    """
    if context.recipe.random_weights:
        return StepOutput(outputs=(), figures=(), notes=(RANDOM,))
    floating = segmenter_of(context, float_sessions(context))
    proof = _proof(context, floating)
    if backend_from_name(context.runtime).version() is None:
        floating.close()
        return StepOutput(outputs=proof, figures=(), notes=(NOT_RUN,))
    questions = _questions(context, floating)
    wanted = ask_tracker(floating, questions)
    floating.close()
    built = segmenter_of(context, built_sessions(context))
    fidelity = compare_answers(wanted, ask_tracker(built, questions))
    built.close()
    figures: dict[str, Any] = {"clicks": asdict(fidelity.clicks)}
    if fidelity.tracks is not None:
        figures["tracks"] = asdict(fidelity.tracks)
    atomic_write_json(context.path(REPORT), figures)
    notes = _weak(context, figures)
    try:
        gates = check_tracker(fidelity, context.recipe.precision, context.recipe.gates)
    except FidelityError as error:
        raise FidelityError(f"{error} Nothing was published.") from error
    return StepOutput(
        outputs=(REPORT, *proof), figures=tuple(figures.values()), gates=dict(gates), notes=notes
    )


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


def _questions(context: BuildContext, floating: Segmenter) -> Questions:
    """Let fp32 find objects, and ask about them."""
    large = context.model.image.size > SMALL_IMAGE
    count = PICTURES_OF_LARGE if large else PICTURES
    pictures, clicks = [], []
    for image in islice(verification_images(context), count):
        pictures.append(image.image_rgb)
        clicks.append(_clicks_on(floating, image.image_rgb, _phrases_of(image), MOST_CLICKED))
    clips = tuple(_clips(context)) if TRACK.among(context.parts) else ()
    return Questions(
        pictures=tuple(pictures),
        clicks=tuple(clicks),
        clips=tuple(clip for clip, _ in clips),
        shown=tuple(_shown(floating, clip, phrases) for clip, phrases in clips),
        phrases=tuple(phrases for _, phrases in clips),
    )


def _proof(context: BuildContext, floating: Segmenter) -> tuple[str, ...]:
    """Keep clicks and a walk through one of the bundle's pictures: any machine can be asked."""
    images = proof_images(context)
    phrases = [_phrases_of(image) for image in images]
    pictures = tuple(image.image_rgb for image in images)
    clips = (panned(pictures[0], PROOF_FRAMES),) if TRACK.among(context.parts) else ()
    named = tuple(tuple(own)[:1] for own in phrases[: len(clips)])
    questions = Questions(
        pictures=pictures,
        clicks=tuple(
            _clicks_on(floating, picture, own, MOST_CLICKED)
            for picture, own in zip(pictures, phrases, strict=True)
        ),
        clips=clips,
        shown=tuple(_shown(floating, *one) for one in zip(clips, named, strict=True)),
        phrases=named,
    )
    said = ask_tracker(floating, questions)
    write_proof_tracks(context.path(TRACKS_NAME), ProofTracks(questions=questions, said=said))
    return (TRACKS_NAME,)


def _shown(
    floating: Segmenter, clip: Sequence[RgbImage], phrases: Sequence[str]
) -> tuple[PromptAt, ...]:
    prompts = _clicks_on(floating, clip[0], phrases, MOST_FOLLOWED)
    return tuple(PromptAt(frame=0, prompt=one) for one in prompts)


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
