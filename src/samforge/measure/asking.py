"""Puts the questions of labelled images to a segmenter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from samforge.core.detections import Detections

if TYPE_CHECKING:
    from samforge.core.labelled import LabelledImage, Question
    from samforge.core.timing import Timings
    from samforge.runtime import EncodedImage, Segmenter

Key: TypeAlias = tuple[int, int]
"""Position of an image in its series, and of a question in its image."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Asked:
    """One question and its answer."""

    key: Key
    """Which question of which image."""
    question: Question
    """What was asked."""
    found: Detections
    """The answer to it alone, ``best_scores`` included."""


def ask(
    segmenter: Segmenter,
    images: Iterable[LabelledImage],
    *,
    timings: Timings,
    boxes: bool = True,
    done: Callable[[], None] | None = None,
    failed: Callable[[str, Exception], None] | None = None,
) -> Iterator[Asked]:
    """Ask a segmenter every question; each image is encoded once, its phrases go in one call.

    Args:
        segmenter: With its sessions loaded.
        images: Gone through once.
        timings: Collects the time of each stage.
        boxes: Whether to ask the questions with boxes too.
        done: Called after each image.
        failed: Called with the name of an image that cannot be segmented, and the reason; none of
            its answers are given, and the others go on. None lets the first such image end it.

    Yields:
        Image by image, first the questions asked by a phrase alone, then those with boxes.

    Raises:
        SettingError: Boxes are asked of a segmenter that takes none.
    """
    for index, labelled in enumerate(images):
        try:
            answers = list(_answers(segmenter, index, labelled, timings, boxes=boxes))
        except Exception as error:
            if failed is None:
                raise
            failed(labelled.name, error)
            answers = []
        yield from answers
        if done is not None:
            done()


def _answers(
    segmenter: Segmenter, index: int, labelled: LabelledImage, timings: Timings, *, boxes: bool
) -> Iterator[Asked]:
    """Every answer of one image."""
    encoded = segmenter.encode(labelled.image_rgb, timings=timings)
    numbered = list(enumerate(labelled.questions))
    by_text = [(i, question) for i, question in numbered if question.boxes_xyxy is None]
    for i, question, found in _by_text(segmenter, encoded, by_text, timings):
        yield Asked(key=(index, i), question=question, found=found)
    by_box = [(i, question) for i, question in numbered if question.boxes_xyxy is not None]
    for i, question in by_box if boxes else ():
        found = segmenter.predict(
            encoded,
            text=question.text,
            boxes_xyxy=question.boxes_xyxy,
            box_labels=question.box_labels,
            timings=timings,
        )
        yield Asked(key=(index, i), question=question, found=found)


def _by_text(
    segmenter: Segmenter,
    encoded: EncodedImage,
    questions: list[tuple[int, Question]],
    timings: Timings,
) -> Iterator[tuple[int, Question, Detections]]:
    """All phrases of an image in one call."""
    if not questions:
        return
    phrases = [question.text or "" for _, question in questions]
    found = segmenter.predict(encoded, text=phrases, timings=timings)
    for phrase, (i, question) in zip(phrases, questions, strict=True):
        best = {key: score for key, score in found.best_scores.items() if key == phrase}
        yield i, question, replace(found.filter(label=phrase), best_scores=best)
