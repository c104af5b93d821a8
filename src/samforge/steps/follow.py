"""Clicks and tracks of a bundle against those of fp32: the proof of the tracker's parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from itertools import islice
from typing import Any

from samforge.backends import backend_from_name
from samforge.core.capabilities import TRACK
from samforge.core.errors import FidelityError
from samforge.core.files import atomic_write_json
from samforge.core.manifest import TRACKS_NAME
from samforge.measure.proof_tracks import ProofTracks, write_proof_tracks
from samforge.measure.tracker_questions import (
    Questions,
    ask_tracker,
    check_tracker,
    compare_answers,
    panned,
)
from samforge.runtime import Segmenter
from samforge.steps.calibrate import float_sessions, segmenter_of
from samforge.steps.context import SMALL_IMAGE, BuildContext, StepOutput
from samforge.steps.images import verification_images
from samforge.steps.rounds import built_sessions, takes_weak_evidence
from samforge.steps.tracker_asking import clicks_on, clips_of, phrases_of, questions_about, shown_in
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
    clips = clips_of(
        context,
        verification_images(context),
        split="demo",
        first=0,
        count=CLIPS_OF_LARGE if large else CLIPS,
        frames=FRAMES_OF_LARGE if large else FRAMES,
    )
    return questions_about(
        floating,
        islice(verification_images(context), PICTURES_OF_LARGE if large else PICTURES),
        clips if TRACK.among(context.parts) else (),
        most_clicked=MOST_CLICKED,
    )


def _proof(context: BuildContext, floating: Segmenter) -> tuple[str, ...]:
    """Keep clicks and a walk through one of the bundle's pictures: any machine can be asked."""
    images = proof_images(context)
    phrases = [phrases_of(image) for image in images]
    pictures = tuple(image.image_rgb for image in images)
    clips = (panned(pictures[0], PROOF_FRAMES),) if TRACK.among(context.parts) else ()
    named = tuple(tuple(own)[:1] for own in phrases[: len(clips)])
    questions = Questions(
        pictures=pictures,
        clicks=tuple(
            clicks_on(floating, picture, own, MOST_CLICKED)
            for picture, own in zip(pictures, phrases, strict=True)
        ),
        clips=clips,
        shown=tuple(shown_in(floating, *one) for one in zip(clips, named, strict=True)),
        phrases=named,
    )
    said = ask_tracker(floating, questions)
    write_proof_tracks(context.path(TRACKS_NAME), ProofTracks(questions=questions, said=said))
    return (TRACKS_NAME,)
