"""Moving pictures -> what every part of the tracker is really fed, and what fp32 makes of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice

import numpy as np

from samforge.core.axes import AXES
from samforge.core.capabilities import DETECTOR, POINTS, TRACK, TRACKER_PARTS, VISION
from samforge.core.detections import Detections
from samforge.core.errors import SettingError
from samforge.core.session import Session
from samforge.measure.proof_tracks import ProofTracks, proof_tracks_from_file, write_proof_tracks
from samforge.measure.tracker_questions import Questions, ask_tracker
from samforge.runtime import ObjectPrompt, Segmenter
from samforge.runtime.tracking import PromptAt
from samforge.steps.calibrate import (
    FOLDER,
    Recording,
    Remembering,
    float_sessions,
    sample_folder,
    segmenter_of,
    write_sample,
)
from samforge.steps.context import SMALL_IMAGE, BuildContext, StepOutput, arrays
from samforge.steps.images import calibration_images
from samforge.steps.tracker_asking import clips_of, questions_about

TRACKS = f"{FOLDER}/tracks.json"
"""What fp32 answered to the clicks and clips on which groups of the tracker's layers are chosen."""
PICTURES, PICTURES_OF_LARGE = 8, 2
"""Of the calibration's pictures, those that are clicked on."""
CLIPS, CLIPS_OF_LARGE = 4, 1
"""Clips through which objects are followed: none of those that the finished bundle is held to."""
FRAMES, FRAMES_OF_LARGE = 12, 5
"""Frames of a clip: more than an object remembers, where that takes no hours."""
MOST_CLICKED = 4
"""Objects of a picture that are clicked on."""
MOST_SAMPLES, MOST_OF_LARGE = 48, 8
"""Samples of a part, at most: every frame of a clip is one."""
CORNER = np.zeros((1, 2))
"""A point that is on no object: that of a picture's first pixel."""
RANDOM_SAMPLES = 2
"""Samples of a part whose weights are random."""
RANDOM_SIZE = 2
"""Of every axis of such a sample."""


def calibrate_tracker(context: BuildContext) -> StepOutput:
    """Click and follow with the float parts, and keep what each was fed.

    Masks, pointers and memories of the parts themselves are fed back to them: what is drawn at
    random would set other ranges.

    Raises:
        SettingError: Parts that work together are not built together.
    """
    parts = [part for part in context.parts if part in TRACKER_PARTS]
    for part in parts:  # of a build with other settings
        shutil.rmtree(context.root / sample_folder(part), ignore_errors=True)
    if context.recipe.random_weights:
        return _random(context, parts)
    _require_whole(context, parts)
    floating = sessions_that_track(context, tracking_parts(context))
    recording = {part: Recording(session=floating[part], context=context) for part in parts}
    segmenter = segmenter_of(context, {**floating, **recording})
    questions = calibration_questions(context, segmenter)
    said = ask_tracker(segmenter, questions)
    _refine(segmenter, questions, said.clicked)
    if TRACK.among(context.parts):
        _give_masks(segmenter, questions, said.clicked)
    segmenter.close()
    write_proof_tracks(context.path(TRACKS), ProofTracks(questions=questions, said=said))
    kept = {part: _some(context, one.written) for part, one in recording.items()}
    figures = tuple({"part": part, "samples": len(paths)} for part, paths in kept.items())
    return StepOutput(
        outputs=(TRACKS, *(path for paths in kept.values() for path in paths)), figures=figures
    )


def calibration_questions(context: BuildContext, floating: Segmenter) -> Questions:
    """Clicks on calibration's pictures, and clips of its split."""
    large = context.model.image.size > SMALL_IMAGE
    return questions_about(
        floating,
        islice(calibration_images(context), PICTURES_OF_LARGE if large else PICTURES),
        _clips(context) if TRACK.among(context.parts) else (),
        most_clicked=MOST_CLICKED,
    )


def calibration_tracks(context: BuildContext) -> ProofTracks:
    """What was asked while the tracker was calibrated, and what fp32 answered."""
    large = context.model.image.size > SMALL_IMAGE
    pictures = islice(calibration_images(context), PICTURES_OF_LARGE if large else PICTURES)
    return proof_tracks_from_file(
        context.path(TRACKS),
        [one.image_rgb for one in pictures],
        [clip for clip, _ in _clips(context)] if TRACK.among(context.parts) else [],
    )


def sessions_that_track(context: BuildContext, parts: Iterable[str]) -> dict[str, Session]:
    """Float sessions of parts; those that know nothing of tracks run once for an input."""
    of_frames = [part for part in parts if part in (VISION, DETECTOR)]
    others = [part for part in parts if part not in of_frames]

    def load(part: str) -> Session:
        return float_sessions(context, [part])[part]

    return {
        **{
            part: Remembering(spec=context.spec(part), context=context, load=partial(load, part))
            for part in of_frames
        },
        **float_sessions(context, others),
    }


def tracking_parts(context: BuildContext) -> tuple[str, ...]:
    """Parts of the build that clicks and tracks go through."""
    return tuple(part for part in context.parts if part in TRACK.parts)


def _clips(context: BuildContext) -> list[tuple[tuple[np.ndarray, ...], tuple[str, ...]]]:
    large = context.model.image.size > SMALL_IMAGE
    count = CLIPS_OF_LARGE if large else CLIPS
    return list(
        clips_of(
            context,
            calibration_images(context),
            split="train",
            first=context.recipe.calibration.seed * count,
            count=count,
            frames=FRAMES_OF_LARGE if large else FRAMES,
        )
    )


def _require_whole(context: BuildContext, parts: Sequence[str]) -> None:
    needed = POINTS if set(parts) <= set(POINTS.parts) else TRACK
    if missing := needed.missing(context.parts):
        raise SettingError(
            f"{', '.join(parts)} cannot be calibrated without {', '.join(missing)}: what they are "
            "fed is seen where objects are followed. Leave --part out."
        )


def _refine(segmenter: Segmenter, questions: Questions, clicked: Sequence[Detections]) -> None:
    """Correct every answer by a second point, and ask by boxes: earlier masks and corners."""
    for picture, prompts, answer in zip(questions.pictures, questions.clicks, clicked, strict=True):
        encoded = segmenter.encode(picture)
        corrected = [
            ObjectPrompt(
                points=[*np.asarray(one.points, float).tolist(), [0.0, 0.0]], labels=[1, 0]
            )
            for one in prompts
        ]
        segmenter.predict_objects(encoded, corrected, earlier=answer)
        boxes = [
            ObjectPrompt(box_xyxy=box)
            for box, mask in zip(answer.boxes_xyxy, answer.masks, strict=True)
            if mask.any()
        ]
        if boxes:
            segmenter.predict_objects(encoded, boxes)


def _give_masks(segmenter: Segmenter, questions: Questions, clicked: Sequence[Detections]) -> None:
    """Show objects by their masks: phrases do so where an object is born, which is seldom."""
    for picture, answer in zip(questions.pictures, clicked, strict=True):
        prompts = [
            PromptAt(frame=0, prompt=ObjectPrompt(mask=mask)) for mask in answer.masks if mask.any()
        ]
        for _ in segmenter.track_video([picture], prompts=prompts):
            pass


def _some(context: BuildContext, written: Sequence[str]) -> list[str]:
    """Keep evenly spaced samples, in an order in which the first few are of all kinds.

    Sensitivity is measured on the first ones, and those of a clip's beginning remember little.
    """
    most = MOST_OF_LARGE if context.model.image.size > SMALL_IMAGE else MOST_SAMPLES
    spaced = np.linspace(0, len(written) - 1, min(most, len(written))).round().astype(int)
    chosen = np.random.default_rng(context.recipe.calibration.seed).permutation(spaced)
    kept = []
    for number, index in enumerate(chosen.tolist()):
        folder, _, _ = written[index].rpartition("/")
        kept.append(f"{folder}/kept-{number:04d}.npz")
        context.path(written[index]).rename(context.path(kept[-1]))
    for other in written:
        context.path(other).unlink(missing_ok=True)
    return kept


def _random(context: BuildContext, parts: Sequence[str]) -> StepOutput:
    """Random tensors for random weights: ranges of the right order, without meaning."""
    sizes = dict.fromkeys(AXES, RANDOM_SIZE)
    written = [
        write_sample(context, part, index, arrays(context.inputs(part, sizes, index)))
        for part in parts
        for index in range(RANDOM_SAMPLES)
    ]
    figures = tuple({"part": part, "samples": RANDOM_SAMPLES} for part in parts)
    return StepOutput(outputs=tuple(written), figures=figures)
