"""Asks fp32 and what was built the same questions, with more pictures until the gates can tell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from samforge.backends import backend_from_name
from samforge.core.capabilities import BOXES
from samforge.core.detections import Detections
from samforge.core.labelled import LabelledImage
from samforge.core.session import Session
from samforge.measure import Verdict, Witness, measure_segmenter
from samforge.measure.feature_maps import worst_cosine, worst_gain
from samforge.measure.segmentation import AccuracyTally
from samforge.measure.sums import sums_from_tallies
from samforge.measure.verdict import LABELLED, ON_PICTURES, verdict_from_sums
from samforge.steps.calibrate import segmenter_of
from samforge.steps.context import BuildContext
from samforge.steps.images import Images
from samforge.steps.options import options_of
from samforge.steps.pictures import Answers

Sessions: TypeAlias = Callable[[], Mapping[str, Session]]
"""Loads the parts of one side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What one side answered, and what its parts gave meanwhile."""

    tally: AccuracyTally = field(default_factory=AccuracyTally)
    """The answers."""
    witness: Witness = field(default_factory=Witness)
    """The parts' own outputs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Both:
    """fp32 and what was built, asked the same."""

    reference: Seen = field(default_factory=Seen)
    """fp32."""
    measured: Seen = field(default_factory=Seen)
    """What was built."""

    def verdict(self, context: BuildContext, *, labelled: bool, features: bool = True) -> Verdict:
        """Hold the gates of the recipe to what was answered so far."""
        witnesses = (self.reference.witness, self.measured.witness)
        return verdict_from_sums(
            sums_from_tallies(self.reference.tally, self.measured.tally, witnesses),
            LABELLED if labelled else ON_PICTURES,
            context.recipe.precision,
            context.recipe.gates,
            worst={
                "feature_cosine": worst_cosine(*witnesses),
                "channel_gain": worst_gain(*witnesses),
            }
            if features
            else None,
        )


def asked(
    context: BuildContext,
    seen: Seen,
    sessions: Mapping[str, Session],
    images: Iterable[LabelledImage],
    reference: Answers | None = None,
    *,
    boxes: bool | None = None,
) -> dict[tuple[int, int], Detections]:
    """Put questions to one side.

    Args:
        context: Of the build.
        seen: Takes what is answered.
        sessions: The parts.
        images: With their questions.
        reference: What the other side answered to the same.
        boxes: Whether to ask the questions with boxes too; None wherever a part takes boxes.

    Returns:
        The answers.
    """
    answers: dict[tuple[int, int], Detections] = {}
    measure_segmenter(
        segmenter_of(context, seen.witness.sessions(sessions)),
        images,
        boxes=BOXES.among(sessions) if boxes is None else boxes,
        reference=reference,
        record=answers,
        tally=seen.tally,
    )
    return answers


def ask_both(
    context: BuildContext, loads: tuple[Sessions, Sessions], batches: Sequence[tuple[Both, Images]]
) -> tuple[Answers, Answers]:
    """Ask both sides the same; only one side's parts are in memory at a time.

    Args:
        context: Of the build.
        loads: Load the parts of each side.
        batches: Who takes the answers, and the pictures, made anew for each side.

    Returns:
        The answers of each side to the last batch.
    """
    answers: list[list[Answers]] = [[], []]
    for side, load in enumerate(loads):
        sessions = load()
        for number, (both, images) in enumerate(batches):
            seen = both.measured if side else both.reference
            before = answers[0][number] if side else None
            answers[side].append(asked(context, seen, sessions, images(), before))
        for session in sessions.values():
            session.close()
    return answers[0][-1], answers[1][-1]


def built_sessions(context: BuildContext, parts: Iterable[str] | None = None) -> dict[str, Session]:
    """The built parts, or some of them, run by the target."""
    backend = backend_from_name(context.runtime)
    options = options_of(context.recipe, context.runs_on)
    return {
        part: backend.session_from_artifact(
            context.path(context.artifact(part)), context.spec(part), options=options
        )
        for part in (context.parts if parts is None else parts)
    }


def takes_weak_evidence(context: BuildContext) -> bool:
    """Whether a build publishes where figures hold and too little was asked to be sure.

    fp32 without pictures of the user's does: tensors were compared already, and a model of another
    field finds nothing in drawn scenes.
    """
    recipe = context.recipe
    own = recipe.precision == "fp32" and recipe.calibration.source is None
    return recipe.gates.weak_evidence or own
