"""How right and how fast a segmenter is on labelled images, by text and by boxes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

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
from samforge.measure.packed import PackedDetections, pack
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


@dataclass(kw_only=True, slots=True)
class Tally:
    """What is counted while the questions are asked."""

    text: list[Match] = field(default_factory=list)
    """Of the questions by a phrase alone."""
    boxes: list[Match] = field(default_factory=list)
    """Of the questions with boxes."""
    pairs: list[PairOutcome] = field(default_factory=list)
    """For cgF1, of the questions by a phrase alone."""
    answers: list[AnswerFidelity] = field(default_factory=list)
    """Against the reference."""

    def add(self, asked: Asked, reference: PackedDetections | None) -> None:
        """Count one answer."""
        iou = mask_iou(asked.found.masks, asked.question.masks)
        if asked.question.boxes_xyxy is None:
            self.text.append(match_from_iou(iou))
            self.pairs.append(outcome_from_iou(iou))
        else:
            self.boxes.append(match_from_iou(iou))
        if reference is not None:
            self.answers.append(compare_detections(reference.unpack(), asked.found))


def measure_segmenter(  # noqa: PLR0913  what is measured, against what, and who is told
    segmenter: Segmenter,
    images: Iterable[LabelledImage],
    *,
    boxes: bool = True,
    reference: Mapping[Key, PackedDetections] | None = None,
    record: MutableMapping[Key, PackedDetections] | None = None,
    done: Callable[[], None] | None = None,
    failed: Callable[[str, Exception], None] | None = None,
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

    Raises:
        SettingError: There is no image, or boxes are asked of a segmenter that takes none.
    """
    timings, tally = Timings(), Tally()
    count = 0

    def counted() -> None:
        nonlocal count
        count += 1
        if done is not None:
            done()

    def left_out(name: str, error: Exception) -> None:
        nonlocal count
        count -= 1
        if failed is None:
            raise error
        failed(name, error)

    handler = left_out if failed is not None else None
    for asked in ask(segmenter, images, timings=timings, boxes=boxes, done=counted, failed=handler):
        tally.add(asked, None if reference is None else reference.get(asked.key))
        if record is not None:
            record[asked.key] = pack(asked.found)
    if not count:
        raise SettingError("Accuracy needs at least one image, got none.")
    return SegmenterAccuracy(
        images=count,
        text=accuracy_from_matches(tally.text) if tally.text else None,
        boxes=accuracy_from_matches(tally.boxes) if tally.boxes else None,
        cgf1=cgf1_from_outcomes(tally.pairs) if tally.pairs else None,
        fidelity=fidelity_from_answers(tally.answers) if tally.answers else None,
        image_ms=timings.total_ms / count,
        stages=timings.stages(),
    )
