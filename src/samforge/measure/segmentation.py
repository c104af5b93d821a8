"""How right and how fast a segmenter is on labelled images, by text and by boxes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from samforge.core.detections import Detections
from samforge.core.errors import SettingError
from samforge.core.timing import StageTime, Timings
from samforge.measure.accuracy import (
    Accuracy,
    Match,
    accuracy_from_matches,
    mask_iou,
    match_from_iou,
)
from samforge.measure.asking import Asked, Key, ask
from samforge.measure.cgf1 import CgF1, PairOutcome, cgf1_from_outcomes, outcome_from_iou
from samforge.measure.predictions import (
    AnswerFidelity,
    PredictionFidelity,
    compare_detections,
    fidelity_from_answers,
)

if TYPE_CHECKING:
    from samforge.core.labelled import LabelledImage
    from samforge.runtime import Segmenter


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmenterAccuracy:
    """Figures of one segmenter."""

    images: int
    """Images measured."""
    text: Accuracy | None
    """Of the questions asked by a phrase alone; None when there was none."""
    boxes: Accuracy | None
    """Of the questions with exemplar boxes; None when there was none."""
    cgf1: CgF1 | None = None
    """Of the questions asked by a phrase alone; None when there was none."""
    fidelity: PredictionFidelity | None = None
    """Of all answers against the reference's; None when there was no reference."""
    image_ms: float
    """Mean time of one image with all its questions, in milliseconds."""
    stages: tuple[StageTime, ...]
    """Where the time went, summed over the images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """One question that was counted."""

    image: int
    """Number of its image."""
    place: int
    """Number of the question in its image."""
    by_phrase: bool
    """Whether a phrase alone asked."""
    match: Match
    """Against the labels."""
    outcome: PairOutcome
    """The same for cgF1."""
    fidelity: AnswerFidelity | None
    """Against the reference; None where there is none."""


@dataclass(kw_only=True, slots=True)
class AccuracyTally:
    """What is counted while the questions are asked; several runs can add to one."""

    answered: list[Answered] = field(default_factory=list)
    """In the order they were asked."""
    images: int = 0
    """Images so far."""
    timings: Timings = field(default_factory=Timings)
    """Where the time went."""

    def add(self, image: int, asked: Asked, reference: Detections | None) -> None:
        """Count one answer."""
        iou = mask_iou(asked.found.masks, asked.question.masks)
        self.answered.append(
            Answered(
                image=image,
                place=asked.key[1],
                by_phrase=asked.question.boxes_xyxy is None,
                match=match_from_iou(iou),
                outcome=outcome_from_iou(iou),
                fidelity=None if reference is None else compare_detections(reference, asked.found),
            )
        )

    def accuracy(self) -> SegmenterAccuracy:
        """Sum everything up.

        Raises:
            SettingError: There is no image.
        """
        if not self.images:
            raise SettingError("Accuracy needs at least one image, got none.")
        text = [one.match for one in self.answered if one.by_phrase]
        boxes = [one.match for one in self.answered if not one.by_phrase]
        pairs = [one.outcome for one in self.answered if one.by_phrase]
        answers = [one.fidelity for one in self.answered if one.fidelity is not None]
        return SegmenterAccuracy(
            images=self.images,
            text=accuracy_from_matches(text) if text else None,
            boxes=accuracy_from_matches(boxes) if boxes else None,
            cgf1=cgf1_from_outcomes(pairs) if pairs else None,
            fidelity=fidelity_from_answers(answers) if answers else None,
            image_ms=self.timings.total_ms / self.images,
            stages=self.timings.stages(),
        )


def asked_of_both(
    reference: AccuracyTally, measured: AccuracyTally
) -> tuple[AccuracyTally, AccuracyTally]:
    """What both were asked and answered: pictures that one of them failed on count for neither.

    Args:
        reference: Of the one that says what is right.
        measured: Of the other, compared with it.

    Returns:
        Both, with the same questions in the same order, of images numbered anew from 0.
    """
    before = {(one.image, one.place): one for one in reference.answered}
    shared = [one for one in measured.answered if one.fidelity is not None]
    numbers = {image: number for number, image in enumerate(dict.fromkeys(o.image for o in shared))}
    tallies = tuple(
        AccuracyTally(
            answered=[replace(one, image=numbers[one.image]) for one in answered],
            images=len(numbers),
        )
        for answered in ([before[one.image, one.place] for one in shared], shared)
    )
    return tallies[0], tallies[1]


def tally_from_answers(
    images: Iterable[LabelledImage], answers: Mapping[Key, Detections]
) -> AccuracyTally:
    """Count answers that were recorded, in the order in which :func:`ask` gives them."""
    tally = AccuracyTally()
    for number, image in enumerate(images):
        tally.images += 1
        keyed = [((number, place), one) for place, one in enumerate(image.questions)]
        for key, question in sorted(keyed, key=lambda one: one[1].boxes_xyxy is not None):
            if key in answers:
                found = answers[key]
                tally.add(number, Asked(key=key, question=question, found=found), None)
    return tally


def measure_segmenter(  # noqa: PLR0913  what is measured, against what, and who is told
    segmenter: Segmenter,
    images: Iterable[LabelledImage],
    *,
    boxes: bool = True,
    reference: Mapping[Key, Detections] | None = None,
    record: MutableMapping[Key, Detections] | None = None,
    done: Callable[[], None] | None = None,
    failed: Callable[[str, Exception], None] | None = None,
    tally: AccuracyTally | None = None,
) -> SegmenterAccuracy:
    """Ask a segmenter every question and compare its masks with the answers.

    Args:
        segmenter: With its sessions loaded.
        images: Each encoded once for all of its questions.
        boxes: Whether to ask the questions with boxes too.
        reference: Another segmenter's answers on the same images, recorded before.
        record: Takes this segmenter's answers, to be the reference of others.
        done: Called after each image.
        failed: Takes the images that cannot be segmented, see :func:`ask`; they do not count.
        tally: What earlier runs counted: the figures are of all of them together.

    Raises:
        SettingError: There is no image, or boxes are asked of a segmenter that takes none.
    """
    tally = AccuracyTally() if tally is None else tally
    before = tally.images

    def counted() -> None:
        tally.images += 1
        if done is not None:
            done()

    def left_out(name: str, error: Exception) -> None:
        tally.images -= 1
        if failed is None:
            raise error
        failed(name, error)

    asking = ask(
        segmenter,
        images,
        timings=tally.timings,
        boxes=boxes,
        done=counted,
        failed=left_out if failed is not None else None,
    )
    for asked in asking:
        # Every run numbers its images from 0.
        image = before + asked.key[0]
        tally.add(image, asked, None if reference is None else reference.get(asked.key))
        if record is not None:
            record[asked.key] = asked.found.compact()
    return tally.accuracy()
