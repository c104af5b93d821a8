"""How right and how fast a segmenter is on labelled images, by text and by boxes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from samforge.core.errors import SettingError
from samforge.core.timing import StageTime, Timings
from samforge.measure.accuracy import Accuracy, Match, accuracy_from_matches, match_masks

if TYPE_CHECKING:
    from samforge.core.labelled import LabelledImage, Question
    from samforge.runtime import EncodedImage, Segmenter


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmenterAccuracy:
    """Figures of one segmenter."""

    images: int
    """Images measured."""
    text: Accuracy | None
    """Of the questions asked by a phrase alone; None when there was none."""
    boxes: Accuracy | None
    """Of the questions with exemplar boxes; None when there was none."""
    image_ms: float
    """Mean time of one image with all its questions, in milliseconds."""
    stages: tuple[StageTime, ...]
    """Where the time went, summed over the images."""


def measure_segmenter(
    segmenter: Segmenter,
    images: Iterable[LabelledImage],
    *,
    boxes: bool = True,
    done: Callable[[], None] | None = None,
) -> SegmenterAccuracy:
    """Ask a segmenter every question and compare its masks with the answers.

    Args:
        segmenter: With its sessions loaded.
        images: Each encoded once for all of its questions.
        boxes: Whether to ask the questions with boxes too.
        done: Called after each image.

    Raises:
        SettingError: There is no image, or boxes are asked of a segmenter that takes none.
    """
    timings = Timings()
    text_matches: list[Match] = []
    box_matches: list[Match] = []
    count = 0
    for labelled in images:
        encoded = segmenter.encode(labelled.image_rgb, timings=timings)
        by_text = [question for question in labelled.questions if question.boxes_xyxy is None]
        text_matches += _by_text(segmenter, encoded, by_text, timings)
        if boxes:
            by_box = [
                question for question in labelled.questions if question.boxes_xyxy is not None
            ]
            box_matches += [_by_box(segmenter, encoded, one, timings) for one in by_box]
        count += 1
        if done is not None:
            done()
    if not count:
        raise SettingError("Accuracy needs at least one image, got none.")
    return SegmenterAccuracy(
        images=count,
        text=accuracy_from_matches(text_matches) if text_matches else None,
        boxes=accuracy_from_matches(box_matches) if box_matches else None,
        image_ms=timings.total_ms / count,
        stages=timings.stages(),
    )


def _by_text(
    segmenter: Segmenter, encoded: EncodedImage, questions: list[Question], timings: Timings
) -> list[Match]:
    """All phrases of an image in one call."""
    phrases = [question.text or "" for question in questions]
    if not phrases:
        return []
    found = segmenter.predict(encoded, text=phrases, timings=timings)
    return [
        match_masks(found.filter(label=phrase).masks, question.masks)
        for phrase, question in zip(phrases, questions, strict=True)
    ]


def _by_box(
    segmenter: Segmenter, encoded: EncodedImage, question: Question, timings: Timings
) -> Match:
    found = segmenter.predict(
        encoded,
        text=question.text,
        boxes_xyxy=question.boxes_xyxy,
        box_labels=question.box_labels,
        timings=timings,
    )
    return match_masks(found.masks, question.masks)
